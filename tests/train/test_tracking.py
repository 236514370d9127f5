"""Weights & Biases: in the run folder and without an account by default, the same run after a resume, or not at all."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cut_off import run_until

from pc_ewa.config import Experiment
from pc_ewa.errors import ConfigError, WriteError
from pc_ewa.train import run, run_folder
from pc_ewa.train.run_folder import RunFolder
from pc_ewa.train.tracking import Tracker

MakeExperiment = Callable[..., Experiment]


@pytest.fixture
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who never logged in."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / ".netrc"))


@pytest.mark.usefixtures("no_account")
def test_offline_needs_no_account_and_stays_in_the_run_folder_under_one_id(
    experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = experiment("wandb={}")  # the default
    run_until(4, made, monkeypatch)
    run(made)
    identity = (tmp_path / "run" / "wandb_id").read_text()
    runs = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    for folder in runs:
        assert f"-{identity}" in folder.name  # wandb numbers the second one where both began in the same second
        assert (folder / f"run-{identity}.wandb").stat().st_size > 0
    assert sorted(os.listdir(tmp_path)) == ["home", "run"]


def test_disabled_does_not_import_wandb(
    experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails
    assert run(experiment("wandb.mode=disabled")) is not None
    assert not (tmp_path / "run" / "wandb_id").exists()
    with pytest.raises(ImportError):
        run(experiment("wandb.mode=offline", f"output={tmp_path}/other"))


@pytest.mark.usefixtures("no_account")
@pytest.mark.parametrize("check", [[], ["--check"]])
def test_online_without_login_is_one_line_and_2_before_training(
    toy_config: Path, tmp_path: Path, tool: Callable[..., Any], check: list[str]
) -> None:
    code, out, err = tool("finetune", toy_config, f"output={tmp_path}/run", "wandb.mode=online", *check)
    wanted = "error: wandb.mode=online needs an account: run 'wandb login', or set wandb.mode=offline\n"
    assert (code, out, err) == (2, "", wanted)
    assert not (tmp_path / "run").exists()


def test_a_server_that_does_not_answer_is_one_line(experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def unreachable(**options: object) -> None:
        raise wandb.errors.CommError("connection refused\nwhile retrying")

    monkeypatch.setattr(wandb, "login", lambda **options: True)
    monkeypatch.setattr(wandb, "init", unreachable)
    with pytest.raises(
        ConfigError, match=r"^Weights & Biases: connection refused\s.*; set wandb\.mode=offline or disabled"
    ):
        run(experiment("wandb.mode=online"))


def test_other_processes_write_and_print_nothing(
    experiment: MakeExperiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Tracker(RunFolder(tmp_path), experiment("wandb.mode=offline"), active=False) as tracker:
        tracker.line("a line")
        tracker.metrics(1, {"loss": 1.0})
        tracker.summary({"loss": 1.0})
    assert os.listdir(tmp_path) == []
    assert capsys.readouterr().out == ""


class Failing:
    """Stands in for a run of W&B whose service was killed."""

    def __init__(self) -> None:
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        def fail(*arguments: object, **options: object) -> None:
            self.calls += 1
            raise ConnectionResetError("Connection lost")

        return fail


def test_wandb_that_fails_is_told_once_and_training_goes_on(
    experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = Failing()
    monkeypatch.setattr("wandb.init", lambda **options: failing)
    assert run(experiment("wandb.mode=offline"))["steps"] == 4
    printed = capsys.readouterr().out
    assert printed.count("Connection lost") == 1
    assert failing.calls == 1


def test_a_full_disk_under_the_log_is_told_once_and_what_waited_is_written_later(
    experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = experiment()
    run(experiment(f"output={tmp_path}/undisturbed"))
    capsys.readouterr()
    append, calls = run_folder.append_text, 0

    def full_for_a_while(path: Path, text: str) -> None:
        nonlocal calls
        calls += 1
        if 3 <= calls < 9:
            raise WriteError(f"cannot write {path}: No space left on device; free some space")
        append(path, text)

    monkeypatch.setattr(run_folder, "append_text", full_for_a_while)
    run(made)
    assert capsys.readouterr().out.count("No space left on device") == 1
    ours, theirs = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "undisturbed")
    assert [line.keys() for line in ours.metrics()] == [line.keys() for line in theirs.metrics()]
    assert [line["step"] for line in ours.metrics()] == [line["step"] for line in theirs.metrics()]
    lines = [(folder.path / "log.txt").read_text().count("\n") for folder in (ours, theirs)]
    assert lines[0] == lines[1]


def test_wandb_that_finds_no_space_to_begin_is_told_and_training_goes_on(
    experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    def full(**options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(wandb, "init", full)
    assert run(experiment("wandb.mode=offline"))["steps"] == 4
    assert capsys.readouterr().out.count("No space left on device") == 1
