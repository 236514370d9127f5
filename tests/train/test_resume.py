"""A run killed at any moment and started again ends as if nothing had happened, bit for bit."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import pytest
import torch
from run_folder import assert_equal, repeatable_metrics, repeatable_summary

from pc_ewa.config import Experiment
from pc_ewa.train import run
from pc_ewa.train.signals import stop_signals

MakeExperiment = Callable[..., Experiment]

# Forks a process for every line it reads, to save each the four seconds of importing torch. A process lists the
# changes it makes to files, as Python's audit hooks tell them, and may send itself a signal right before one of them.
SERVER = """
import json, os, runpy, signal, sys
import torch._dynamo  # every optimizer imports it
import pc_ewa.train
pc_ewa.train.loop.LOG_EVERY = 1
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a parent under nohup hands on that it is ignored,
signal.signal(signal.SIGINT, signal.default_int_handler)  # and one in the background of a script likewise

def watch(changes, deadly, number, half):
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        writes = event == "open" and isinstance(arguments[1], str) and arguments[1][0] in "wax"
        if writes or event in ("os.rename", "os.link", "os.remove", "os.mkdir"):
            changes.write(f"{event} {arguments[0]}\\n")
            changes.flush()
            seen += 1
            if seen == deadly:
                if half and writes:  # the file is there, with a part of what it should hold
                    open(arguments[0], "ab").write(b'{"step"')
                os.kill(os.getpid(), number)
    sys.addaudithook(hook)

for line in sys.stdin:
    job = json.loads(line)
    if not os.fork():
        code = 70
        try:
            os.dup2(os.open(job["log"], os.O_CREAT | os.O_WRONLY | os.O_APPEND), 1)
            os.dup2(1, 2)
            watch(open(job["changes"], "w"), job["deadly"], job["signal"], job["half"])
            sys.argv = job["command"]
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


class Finished(NamedTuple):
    """Exit code of a process (negative: the signal it died of), and the changes of files it made or began."""

    code: int
    changes: list[str]


class Server:
    """Runs tools/finetune.py in processes of its own."""

    def __init__(self, config: Path, process: subprocess.Popen[str]) -> None:
        self.config, self.process = config, process

    def finetune(
        self,
        folder: Path,
        deadly: int = 0,
        number: int = signal.SIGKILL,
        half: bool = False,
        overrides: tuple[str, ...] = (),
    ) -> Finished:
        """Train 3 steps, each of them saved, the second and third with validation.

        Args:
            folder: the run folder; what is printed goes to a file beside it.
            deadly: right before which change of files a signal comes, counted from 1; 0 means none comes.
            number: the signal.
            half: whether the file that is opened for writing then has got a part of its bytes.
            overrides: of the config.
        """
        folder.parent.mkdir(exist_ok=True)
        changes = folder.parent / "changes"
        job = {
            "command": [
                "tools/finetune.py",
                str(self.config),
                f"output={folder}",
                "train.steps=3",
                "train.keep=1",
                *overrides,
            ],
            "log": str(folder.parent / "printed"),
            "changes": str(changes),
            "deadly": deadly,
            "signal": number,
            "half": half,
        }
        stdin, stdout = _pipes(self.process)
        print(json.dumps(job), file=stdin, flush=True)
        return Finished(int(stdout.readline()), changes.read_text().splitlines())


@pytest.fixture(scope="module")
def server(repository: Path, toy_config: Path, one_thread_environment: dict[str, str]) -> Iterator[Server]:
    command = [sys.executable, "-c", SERVER]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=repository, env=one_thread_environment, stdin=pipe, stdout=pipe, text=True
    ) as process:
        yield Server(toy_config, process)
        _pipes(process)[0].close()


class Reference(NamedTuple):
    """The uninterrupted run."""

    folder: Path
    changes: list[str]


@pytest.fixture(scope="module")
def reference(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    code, changes = server.finetune(folder)
    assert code == 0, (folder.parent / "printed").read_text()
    return Reference(folder, changes)


def assert_same_run(folder: Path, reference: Path) -> None:
    checkpoints = sorted(os.listdir(reference / "checkpoints"))
    assert sorted(os.listdir(folder / "checkpoints")) == checkpoints
    for name in checkpoints:
        one, other = (torch.load(f / "checkpoints" / name, weights_only=True) for f in (folder, reference))
        assert_equal(one, other)
    assert repeatable_metrics(folder) == repeatable_metrics(reference)
    assert repeatable_summary(folder) == repeatable_summary(reference)
    assert sorted(os.listdir(folder)) == sorted(os.listdir(reference))


def moments(changes: list[str]) -> list[int]:
    """Every change of names in the run folder: renames, links, removals of checkpoints, counted from 1."""
    return [
        i for i, change in enumerate(changes, 1) if re.match(r"os\.(rename|link) .*run/|os\.remove .*\.pt$", change)
    ]


@pytest.mark.slow
def test_killed_before_any_change_of_names_the_run_ends_the_same(
    server: Server, reference: Reference, tmp_path: Path
) -> None:
    killed_at = moments(reference.changes)
    assert len(killed_at) > 15  # 3 checkpoints of several names each, the merged models, the summary
    for deadly in killed_at:
        folder = tmp_path / str(deadly) / "run"
        killed = server.finetune(folder, deadly)
        assert killed.code == -signal.SIGKILL
        assert [c.split()[0] for c in killed.changes] == [c.split()[0] for c in reference.changes[:deadly]]
        again = server.finetune(folder)
        assert again.code == 0, (folder.parent / "printed").read_text()
        assert_same_run(folder, reference.folder)


@pytest.mark.slow
def test_killed_in_the_middle_of_writing_the_run_ends_the_same(
    server: Server, reference: Reference, tmp_path: Path
) -> None:
    """Every file once, when it is written last: config, figures, checkpoints, merged models, summary."""
    opened = {change.rpartition("/")[2]: i for i, change in enumerate(reference.changes, 1) if change[:4] == "open"}
    assert len(opened) >= 8
    for deadly in opened.values():
        folder = tmp_path / str(deadly) / "run"
        assert server.finetune(folder, deadly, half=True).code == -signal.SIGKILL
        assert server.finetune(folder).code == 0, (folder.parent / "printed").read_text()
        assert_same_run(folder, reference.folder)


def test_killed_again_and_again_the_run_ends_the_same(server: Server, reference: Reference, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    # Right before the second checkpoint of the first start gets its name, and as late in each of the others.
    deadly = next(i for i, change in enumerate(reference.changes) if ".step-00000002" in change)
    starts = 0
    while server.finetune(folder, deadly).code == -signal.SIGKILL:
        starts += 1
        assert starts < 20
    assert starts >= 3, "killed too late to matter"
    assert_same_run(folder, reference.folder)


def test_a_signal_to_stop_saves_and_exits_as_it_says(server: Server, tmp_path: Path) -> None:
    """Sent in the first step, after which no checkpoint is due."""
    rare = ("train.save_every=99",)
    whole = tmp_path / "whole" / "run"
    changes = server.finetune(whole, overrides=rare).changes
    first_metrics = next(i for i, change in enumerate(changes, 1) if "metrics.jsonl" in change)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        folder = tmp_path / number.name / "run"
        stopped = server.finetune(folder, first_metrics, number, overrides=rare)
        printed = (folder.parent / "printed").read_text()
        assert stopped.code == 128 + number, printed
        assert "stopped after step 1, saved; the same command goes on from here" in printed
        assert "Traceback" not in printed
        assert not (folder / "summary.json").exists()
        assert server.finetune(folder, overrides=rare).code == 0
        assert "resuming after step 1" in (folder.parent / "printed").read_text()
        assert_same_run(folder, whole)


def test_a_signal_that_was_ignored_stays_ignored(
    experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as received:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_a_run_killed_from_outside_resumes_by_the_same_command(
    repository: Path,
    toy_config: Path,
    tmp_path: Path,
    one_thread_environment: dict[str, str],
    experiment: MakeExperiment,
) -> None:
    """Nothing but the command line, at whatever step the kill arrives."""
    overrides = ["train.steps=30", "train.save_every=7"]
    folder = tmp_path / "killed"
    command = [sys.executable, "tools/finetune.py", str(toy_config), f"output={folder}", *overrides]
    environment = one_thread_environment
    with subprocess.Popen(command, cwd=repository, env=environment, stdout=subprocess.PIPE, text=True) as process:
        _, stdout = _pipes(process)
        for line in stdout:
            if line.startswith("step 10/30"):
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "summary.json").exists()
    again = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stderr) == (0, "")
    assert "resuming after step" in again.stdout
    run(experiment(*overrides))
    whole = tmp_path / "run"
    for name in ("last.pt", "best.pt", "merged_last.pt", "merged_best.pt"):
        one, other = (torch.load(f / "checkpoints" / name, weights_only=True) for f in (folder, whole))
        one.pop("config")
        other.pop("config")
        assert_equal(one, other)
    assert [line["step"] for line in repeatable_metrics(folder)] == [line["step"] for line in repeatable_metrics(whole)]


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    """The pipes of a process: those that it has."""
    return process.stdin, process.stdout  # type: ignore[return-value]
