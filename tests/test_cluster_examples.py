"""examples/cluster: what a scheduler starts is real, and is checked before anything trains."""

import json
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from torch.distributed.run import get_args_parser

from pc_ewa import cli

CLUSTER = Path(__file__).parent.parent / "examples" / "cluster"
SLURM = {
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_GPUS_ON_NODE": "8",
    "SLURM_JOB_ID": "41234",
}
# Stands in for a command: notes how it was called, and ends as it was told to.
STUB = """#!/usr/bin/env bash
printf '%s\\0' "$0" "$@" >> "$CALLS"; printf '\\n' >> "$CALLS"
[ "$1 $2" = "show hostnames" ] && printf 'node1\\nnode2\\n'
exit "$(cat "$0.code" 2>/dev/null || echo 0)"
"""


class Ran(NamedTuple):
    """The exit code of a script, and the commands that it called."""

    code: int
    calls: list[list[str]]


def sbatch(folder: Path, codes: dict[str, int]) -> Ran:
    """Run the example as Slurm would, with commands that end with these codes."""
    for name in ("pc-ewa", "srun", "scontrol"):
        (folder / name).write_text(STUB)
        (folder / name).chmod(0o755)
        (folder / f"{name}.code").write_text(str(codes.get(name, 0)))
    environment = SLURM | {"PATH": f"{folder}:/usr/bin:/bin", "CALLS": str(folder / "calls")}
    command = ["bash", str(CLUSTER / "slurm.sbatch"), "quickstart", f"output={folder}/run"]
    done = subprocess.run(command, env=environment, check=False, timeout=60)
    lines = (folder / "calls").read_text().splitlines()
    calls = [line.rstrip("\0").split("\0") for line in lines]
    return Ran(done.returncode, [[Path(call[0]).name, *call[1:]] for call in calls])


def check_start(check: list[str], start: list[str], output: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The check is of as many processes as torchrun starts, of the same training, and finds it in order."""
    assert start[:3] == ["python", "-m", "pc_ewa.train.launch"]
    torchrun = get_args_parser().parse_args(start[3:])
    assert (torchrun.module, torchrun.training_script) == (True, "pc_ewa")
    assert torchrun.rdzv_backend == "c10d"
    assert torchrun.max_restarts > 0
    processes = int(torchrun.nnodes) * int(torchrun.nproc_per_node)
    assert check == ["pc-ewa", *torchrun.training_script_args, "--check", "--processes", str(processes)]
    given = [f"output={output}" if word.startswith("output=") else word for word in check[1:]]
    assert cli.main([*given, "device=cpu"]) == 0
    assert "are in order" in capsys.readouterr().out
    # 32 samples are no batch for 6 processes.
    assert cli.main([*given[:-1], "6", "device=cpu"]) == 2


def test_slurm_checks_then_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = sbatch(tmp_path, {})
    assert ran.code == 0
    _, check, start = ran.calls
    begin = start.index("python")
    assert start[:begin] == ["srun", "--kill-on-bad-exit=0"]
    assert start[start.index("--rdzv-endpoint") + 1] == "node1:21234"
    check_start(check, start[begin:], str(tmp_path / "run"), capsys)


@pytest.mark.parametrize(
    ("codes", "code", "called"),
    [
        ({"pc-ewa": 2}, 2, ["scontrol", "pc-ewa"]),
        ({"srun": 1}, 1, ["scontrol", "pc-ewa", "srun"]),
        ({"srun": 138}, 138, ["scontrol", "pc-ewa", "srun", "scontrol"]),
    ],
    ids=["a wrong config", "a failure", "out of time"],
)
def test_slurm_trains_nothing_unchecked_and_queues_again(
    codes: dict[str, int], code: int, called: list[str], tmp_path: Path
) -> None:
    ran = sbatch(tmp_path, codes)
    assert (ran.code, [call[0] for call in ran.calls]) == (code, called)
    if code == 138:
        assert ran.calls[-1] == ["scontrol", "requeue", "41234"]


def test_kubernetes_checks_then_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
    assert (service["kind"], job["kind"], job["spec"]["completionMode"]) == ("Service", "Job", "Indexed")
    pod = job["spec"]["template"]["spec"]
    (check,), (train,) = pod["initContainers"], pod["containers"]
    assert all(isinstance(word, str) for container in (check, train) for word in container["command"])
    assert check["image"] == train["image"]
    torchrun = get_args_parser().parse_args(train["command"][3:])
    assert int(torchrun.nnodes) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert int(torchrun.nproc_per_node) == train["resources"]["limits"]["nvidia.com/gpu"]
    name, domain = torchrun.rdzv_endpoint.split(":")[0].split(".")
    assert (name, domain) == (f"{job['metadata']['name']}-0", service["metadata"]["name"])
    assert pod["subdomain"] == domain
    assert service["spec"]["selector"] == job["spec"]["template"]["metadata"]["labels"]
    assert {mount["name"] for mount in train["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert json.loads(json.dumps(job)) == job  # what kubectl sends
    check_start(check["command"], train["command"], str(tmp_path / "run"), capsys)
