"""Two processes under torchrun do what one does that accumulates two parts."""

import datetime
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from two_processes import Done, free_port, train_in_two

from pc_ewa.config import Experiment
from pc_ewa.errors import ConfigError
from pc_ewa.train import distributed, launch, run
from pc_ewa.train.batches import Batches
from pc_ewa.train.distributed import World, choose_device, join_world, sync_batchnorm_statistics
from pc_ewa.train.run import check
from pc_ewa.train.signals import first_signal
from pc_ewa.train.splits import load_splits

MakeExperiment = Callable[..., Experiment]


@pytest.mark.parametrize("gate", ["null", "{balance_weight: 0.5}"], ids=["dealt at random", "gated"])
@pytest.mark.slow
def test_two_processes_equal_one_that_accumulates(
    gate: str,
    repository: Path,
    toy_config: Path,
    experiment: MakeExperiment,
    tmp_path: Path,
    one_thread_environment: dict[str, str],
) -> None:
    """Halves of each batch, gradients averaged over gloo, experts averaged by each process: the same to the last bit.

    The running statistics of the batch norms are not: one process sees the parts in turn, two see one part each.
    """
    overrides = ["ewa.schedule=constant", "train.label_smoothing=0.1", "average.kind=swa", "average.start=0"]
    overrides.append(f"ewa.gate={gate}")
    arguments = [str(toy_config), f"output={tmp_path}/two", *overrides]
    if gate == "null":
        torchrun = [sys.executable, "-m", "pc_ewa.train.launch", "--standalone", "--nproc-per-node", "2"]
        command = [*torchrun, "-m", "pc_ewa", "train", *arguments]
        ran = subprocess.run(
            command, cwd=repository, env=one_thread_environment, capture_output=True, text=True, check=False
        )
        done = Done(ran.returncode, ran.stdout, ran.stderr)
    else:
        done = train_in_two(*arguments)
    assert done.code == 0, done.err
    assert done.out.count("validation accuracy:") == 1  # one of them prints
    assert "on 2 x cpu" in done.out
    run(experiment(f"output={tmp_path}/one", "train.accumulate=2", *overrides))
    contents = [torch.load(tmp_path / n / "checkpoints" / "last.pt", weights_only=True) for n in ("one", "two")]
    one, two = (content["model"] for content in contents)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    compared = [key for key in one if not key.endswith(statistics)]
    assert len(compared) > 30
    for key in compared:
        assert torch.equal(one[key], two[key]), key
    means = [key for key in one if key.endswith("running_mean")]
    assert all(torch.isfinite(two[key]).all() and not torch.equal(one[key], two[key]) for key in means)
    # Those of the average are: they are the mean over all parts, whoever saw them.
    one, two = (content["averaged"] for content in contents)
    assert all(torch.equal(one[key], two[key]) for key in compared)
    for key in means:
        torch.testing.assert_close(one[key], two[key], rtol=1e-5, atol=1e-6)
    # Each shape of the test part was measured once, by one of the processes.
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert (summary["test_samples"], summary["val_samples"]) == (12, 3)
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["processes"] == 2


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with join_world("cpu") as world:
        assert (world.rank, world.size, world.device, world.is_main) == (0, 1, torch.device("cpu"), True)
        assert not torch.distributed.is_initialized()
        assert first_signal([signal.SIGTERM, signal.SIGINT], world.device) == signal.SIGTERM
        assert first_signal([], world.device) == 0


@pytest.mark.parametrize("device", ["tpu", "cud", "mps", "cuda:one", ""])
def test_unknown_devices_are_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=r"choose auto, cpu, cuda or cuda:N$"):
        choose_device(device)


@pytest.mark.parametrize(
    ("device", "local_rank", "gpus", "chosen"),
    [
        ("auto", None, 0, "cpu"),
        ("auto", None, 1, "cuda:0"),
        ("auto", 1, 2, "cuda:1"),
        ("cpu", 3, 2, "cpu"),
        ("cuda", None, 2, "cuda:0"),
        ("cuda:1", None, 2, "cuda:1"),
        ("cuda", 1, 2, "cuda:1"),
    ],
)
def test_every_process_gets_a_device_of_its_own(
    monkeypatch: pytest.MonkeyPatch, device: str, local_rank: int | None, gpus: int, chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert choose_device(device, local_rank) == torch.device(chosen)


@pytest.mark.parametrize(("device", "local_rank", "gpus"), [("cuda", None, 0), ("cuda:2", None, 2), ("cuda", 2, 2)])
def test_a_gpu_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, device: str, local_rank: int | None, gpus: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(
        ConfigError, match=rf"device='{device}' asks for GPU \d; this machine has {gpus}: set device=cpu"
    ):
        choose_device(device, local_rank)


def test_running_statistics_become_the_mean_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = torch.nn.BatchNorm1d(2)
    norm.running_mean = torch.tensor([1.0, 2.0])
    sync_batchnorm_statistics(norm)
    assert norm.running_mean.tolist() == [1, 2]  # alone
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.add_(torch.tensor([3.0, 0.0])))  # the other's
    sync_batchnorm_statistics(norm)
    assert norm.running_mean.tolist() == [2, 1]
    assert norm.num_batches_tracked == 0


@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two"),
        ({"WORLD_SIZE": ""}, "expected whole numbers"),
        ({"WORLD_SIZE": "-1"}, "expected whole numbers"),
        ({"WORLD_SIZE": "2", "RANK": "1.0"}, "expected whole numbers"),
        ({"WORLD_SIZE": "0"}, "counts from 0"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "counts from 0"),
        ({"RANK": "1"}, "counts from 0"),
        ({"WORLD_SIZE": "2"}, "without RANK"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR and MASTER_PORT"),
    ],
)
def test_a_place_that_cannot_be_is_refused(told: dict[str, str], wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in told.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ConfigError, match=wrong), join_world("cpu"):
        pass


@pytest.mark.parametrize(("size", "rank"), [(4, 0), (4, 3)])
def test_a_check_needs_no_other_process(
    size: int, rank: int, experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process can check by itself, and counts those that there will be."""
    monkeypatch.setenv("WORLD_SIZE", str(size))
    monkeypatch.setenv("RANK", str(rank))
    assert "are in order" in check(experiment())
    with pytest.raises(ConfigError, match="over 4 processes and 2 accumulated"):
        check(experiment("train.accumulate=2"))


@pytest.mark.parametrize(
    ("began", "processes", "accumulate", "slots"),
    [(None, 2, 1, 2), (4, 1, 1, 4), (4, 2, 1, 4), (4, 4, 1, 4), (2, 4, 1, 4), (4, 3, 1, 3), (4, 1, 2, 4), (2, 4, 2, 8)],
)
def test_a_run_keeps_the_parts_of_its_batches(
    began: int | None, processes: int, accumulate: int, slots: int, experiment: MakeExperiment
) -> None:
    """As far as the processes of now divide them: then losses are what they were."""
    made = experiment(f"train.accumulate={accumulate}")
    batches = Batches(load_splits(made.data, 0).train, made, processes * accumulate, torch.device("cpu"))
    batches.keep(began)
    assert batches.slots == slots
    shares = [batches.of(World(rank, processes, torch.device("cpu"))) for rank in range(processes)]
    assert [slot for share in shares for slot in share] == list(range(slots))


FROZEN = """
import datetime, os, signal, torch, torch.distributed as dist
from pc_ewa.errors import TrainingError
from pc_ewa.train import distributed

distributed.PATIENCE, distributed.ROLL_CALL = datetime.timedelta(seconds=2), datetime.timedelta(seconds=1)
children = []
for rank in range(3):
    child = os.fork()
    if not child:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "3"}
        try:
            with distributed.join_world("cpu") as world:
                with distributed.others_wait(world):
                    pass
                if rank == 1:
                    os.kill(os.getpid(), signal.SIGSTOP)
                dist.all_reduce(torch.ones(1))
        except TrainingError as error:
            if rank == 0:  # it holds the store, which goes with it
                print(error, flush=True)
        finally:
            os._exit(0)
    children.append(child)
os.waitpid(children[0], 0)
for child in children[1:]:
    os.kill(child, signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_frozen_process_is_named(one_thread_environment: dict[str, str]) -> None:
    environment = one_thread_environment | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    done = subprocess.run(
        [sys.executable, "-c", FROZEN], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.startswith("process 1 of 3 does not answer"), done.stderr


def test_a_process_that_is_silent_is_named_within_five_minutes() -> None:
    """Torchrun gives those that do not end by themselves 30 seconds more."""
    assert distributed.PATIENCE + distributed.ROLL_CALL + datetime.timedelta(seconds=30) < datetime.timedelta(minutes=5)


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (SignalException("stop", signal.SIGTERM), 143, ""),
        (SignalException("stop", signal.SIGINT), 130, ""),
        (ChildFailedError("train", {0: ProcessFailure(0, 1, 2, "")}), 2, ""),
        (ChildFailedError("train", {1: ProcessFailure(1, 1, 143, "")}), 143, ""),
        (ChildFailedError("train", {1: ProcessFailure(1, 1, -9, "")}), 137, "process 1 died of SIGKILL"),
    ],
    ids=["SIGTERM", "Ctrl-C", "an error", "a process that was stopped", "a process that was killed"],
)
def test_torchrun_ends_as_the_training_in_it(
    raised: Exception, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(arguments: list[str]) -> None:
        assert arguments[-1] == "train"
        raise raised

    monkeypatch.setattr(launch.run, "main", ended)
    assert launch.main(["-m", "pc_ewa", "train"]) == code
    assert said in capsys.readouterr().err
