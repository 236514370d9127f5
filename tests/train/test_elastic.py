"""Torchrun starts all processes again when one of them, or a host, is lost; nothing of the result is."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folder import assert_equal
from torchruns import Ran, one_host, two_hosts, under_torchrun

from pc_ewa.config import Experiment
from pc_ewa.eval.right import unpack_right
from pc_ewa.train import run

MakeExperiment = Callable[..., Experiment]

# Four parts of two samples make a batch, for 1, 2 or 4 processes. Two steps are an epoch: the third is in mid-epoch.
TOY = ["ewa.schedule=constant", "train.steps=6", "train.save_every=2", "train.eval_every=3"]
# Batch norms of two samples magnify rounding, and Adam turns the sign of a gradient that is all rounding into a step.
TOY += ["train.lr=1e-5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elastic")


@pytest.fixture(scope="module")
def ran(folder: Path, toy_config: Path) -> Ran:
    """Runs in `folder`: "two" and "four" processes, "killed" as "two" but for a worker, "hosts" that lose one."""

    def train(name: str, accumulate: int) -> list[str]:
        return [str(toy_config), f"output={folder}/{name}", f"train.accumulate={accumulate}", *TOY]

    two = ("--standalone", "--nproc-per-node", 2)
    return under_torchrun(
        folder,
        ("nothing", one_host(*two, train=train("two", 2))),
        ("worker", one_host(*two, "--max-restarts", 1, train=train("killed", 2))),
        ("worker", one_host(*two, train=train("given up", 2))),
        ("nothing", one_host("--standalone", "--nproc-per-node", 4, train=train("four", 1))),
        ("host", two_hosts("--max-restarts", 1, train=train("hosts", 2))),
    )


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    """Two network namespaces, joined by a cable: 10.9.0.1 and 10.9.0.2 are on devices of their names."""
    names = f"a{os.getpid()}", f"b{os.getpid()}"
    ip = shutil.which("ip")
    if ip is None or subprocess.run([ip, "netns", "add", names[0]], capture_output=True, check=False).returncode:
        pytest.skip("the optional package iproute2 is not installed, or may not make network namespaces (not root)")
    try:
        for command in (
            f"netns add {names[1]}",
            f"link add {names[0]} netns {names[0]} type veth peer name {names[1]} netns {names[1]}",
            *(f"-n {name} addr add 10.9.0.{number}/24 dev {name}" for number, name in enumerate(names, 1)),
            *(f"-n {name} link set {device} up" for name in names for device in ("lo", name)),
        ):
            subprocess.run([ip, *command.split()], check=True)
        yield names
    finally:
        for name in names:
            subprocess.run([ip, "netns", "del", name], capture_output=True, check=False)


def last(run_folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run_folder / "checkpoints" / "last.pt", weights_only=True)
    return content


def records(run_folder: Path) -> dict[str, float]:
    """All that was recorded, but times."""
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return {f"{line['step']} {k}": v for line in lines for k, v in line.items() if "second" not in k}


def assert_same_losses(found: dict[str, float], wanted: dict[str, float]) -> None:
    """Equal but for rounding, of which the norm of large gradients has more."""
    assert found.keys() == wanted.keys()
    assert found["6 loss"] == pytest.approx(wanted["6 loss"], rel=2e-4)
    assert found["6 grad_norm"] == pytest.approx(wanted["6 grad_norm"], rel=5e-3)


@pytest.mark.slow
def test_a_killed_worker_costs_nothing_of_the_result(ran: Ran, folder: Path) -> None:
    assert ran.codes[:3] == [[0], [0], [137]], ran.err
    log = (folder / "killed" / "log.txt").read_text()
    assert log.count("resuming after step 2") == 1
    assert "resuming" not in (folder / "two" / "log.txt").read_text()
    assert "died of SIGKILL" in ran.err
    one, two = last(folder / "killed"), last(folder / "two")
    assert one["progress"]["step"] == 6
    for part in ("model", "optimizer"):
        assert_equal(one[part], two[part])
    assert records(folder / "killed") == records(folder / "two")


@pytest.mark.slow
def test_a_lost_host_costs_nothing_of_the_result(ran: Ran, folder: Path) -> None:
    """One host then does the parts of a batch that two did."""
    assert ran.codes[4] == [0, -9], ran.err
    log = (folder / "hosts" / "log.txt").read_text()
    assert "resuming after step 2\neach process takes 4 of 4 parts of a batch" in log
    assert json.loads((folder / "hosts" / "environment.json").read_text())["processes"] == 1
    assert_same_losses(records(folder / "hosts"), records(folder / "two"))


@pytest.mark.slow
def test_a_host_without_its_cable_is_given_up(
    namespaces: tuple[str, str], ran: Ran, folder: Path, toy_config: Path, tmp_path: Path
) -> None:
    """No connection is closed: the other host hears nothing, until its patience ends."""
    train = [str(toy_config), f"output={tmp_path}/cut", "train.accumulate=2", *TOY]
    addresses = "10.9.0.1", "10.9.0.2"
    hosts = two_hosts("--max-restarts", 1, train=train, addresses=addresses)
    done = under_torchrun(tmp_path, ("host", hosts), namespaces=namespaces)
    assert done.codes == [[0, -9]], done.err
    assert "resuming after step 2\neach process takes 4 of 4 parts" in (tmp_path / "cut" / "log.txt").read_text()
    assert_same_losses(records(tmp_path / "cut"), records(folder / "two"))


@pytest.mark.slow
def test_losses_do_not_depend_on_the_number_of_processes(
    ran: Ran, folder: Path, experiment: MakeExperiment, tmp_path: Path
) -> None:
    run(experiment("train.accumulate=4", *TOY))
    wanted = records(tmp_path / "run")
    assert {"6 loss", "6 grad_norm"} <= wanted.keys()
    assert ran.codes[3] == [0], ran.err
    for name in ("two", "four"):
        found = records(folder / name)
        assert_same_losses(found, wanted)
        summary = json.loads((folder / name / "summary.json").read_text())
        # Each test sample was measured once, by one of the processes: two batches leave two of four without any.
        right = unpack_right(summary["test_right_merged"])
        assert len(right) == summary["test_samples"] == 12
        assert summary["test_accuracy_merged"] == pytest.approx(right.double().mean().item())
