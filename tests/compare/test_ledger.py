"""Runs of several sittings and machines add up: none is run twice, and one that was cut off never counts."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compare_folder import finish

from pc_ewa.compare import Options, Plan, compare
from pc_ewa.compare.execute import Stopped
from pc_ewa.compare.ledger import Ledger, settings
from pc_ewa.compare.results import read_results
from pc_ewa.errors import ConfigError

Make = Callable[..., Plan]
SAVE = Path("saved")
OPTIONS = Options(jobs=1, costs=False, save=SAVE)
# The score is the seed's number; each run is noted.
WRITE = """seed=$(echo "$*" | sed 's/.*seed=\\([0-9]*\\).*/\\1/'); echo "$folder" >> ran
echo "{\\"main_metric\\": \\"accuracy\\", \\"seed\\": $seed, \\"steps\\": 4, \\"test_samples\\": 12,
  \\"val_accuracy\\": 0.5, \\"test_accuracy_merged\\": 0.5$seed}" > "$folder/summary.json" """


def ran() -> list[str]:
    """The runs since this was asked last."""
    found = Path("ran").read_text().split() if Path("ran").is_file() else []
    Path("ran").unlink(missing_ok=True)
    return sorted(name.removeprefix("runs/compare/toys/") for name in found)


def ledger() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SAVE / "toys.runs.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the curves, which take most of the time."""
    monkeypatch.setattr("pc_ewa.compare.run._write_curves", lambda plan, runs: None)


@pytest.fixture
def other_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Call the machine something else."""
    return lambda name: monkeypatch.setattr("pc_ewa.compare.ledger.hardware", lambda: name)


def test_a_fresh_clone_with_the_ledger_runs_only_what_is_missing(
    plan: Make, trainer: Callable[[str], None], other_machine: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(WRITE)
    other_machine("an abacus")
    compare(plan("sweep=null", "seeds=[0]"), OPTIONS)
    assert ran() == ["dense/seed_0", "ewa/seed_0"]
    Path("runs").rename("elsewhere")  # only what was saved is left
    other_machine("a slide rule")
    capsys.readouterr()
    compare(plan("sweep=null", "seeds=[0,1]"), OPTIONS)
    assert "2 runs taken from saved/toys.runs.jsonl" in capsys.readouterr().out
    assert ran() == ["dense/seed_1", "ewa/seed_1"]
    assert [(r["variant"], r["seed"], r["hardware"]) for r in ledger()] == [
        ("dense", 0, "an abacus"),
        ("ewa", 0, "an abacus"),
        ("dense", 1, "a slide rule"),
        ("ewa", 1, "a slide rule"),
    ]
    saved = read_results(SAVE / "toys.json")
    assert saved["variants"]["ewa"]["scores"]["merged"] == {"0": 0.50, "1": 0.51}
    assert saved["hardware"] == "an abacus and a slide rule"
    assert [(s["hardware"], s["runs"]) for s in saved["sittings"]] == [("an abacus", 2), ("a slide rule", 2)]
    compare(plan("sweep=null", "seeds=[0,1]"), OPTIONS)
    assert ran() == []
    assert len(ledger()) == 4
    assert str(Path.cwd()) not in (SAVE / "toys.runs.jsonl").read_text()


def test_ledgers_of_two_machines_one_behind_the_other_add_up(plan: Make, trainer: Callable[[str], None]) -> None:
    trainer(WRITE)
    parts = []
    for seeds in ("[0,1]", "[1,2]"):  # one seed ran on both
        compare(plan("sweep=null", f"seeds={seeds}"), OPTIONS)
        parts.append((SAVE / "toys.runs.jsonl").read_text())
        (SAVE / "toys.runs.jsonl").unlink()
        Path("runs").rename(f"runs_{seeds}")
    (SAVE / "toys.runs.jsonl").write_text("".join(parts))
    ran()
    compare(plan("sweep=null", "seeds=[0,1,2]"), OPTIONS)
    assert ran() == []
    assert list(read_results(SAVE / "toys.json")["variants"]["ewa"]["scores"]["merged"]) == ["0", "1", "2"]


def test_every_run_lands_as_it_finishes_and_one_that_is_stopped_does_not(
    plan: Make, trainer: Callable[[str], None]
) -> None:
    """The third run is stopped half way; what it left is not in the ledger, and it is run again."""
    stop = f'case "$*" in *dense/seed_1*) touch stopping; kill -TERM {os.getpid()}; exec sleep 5;; esac'
    trainer(f"[ -e stopping ] || {{ {stop}; }}\n{WRITE}")
    outside = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(Stopped):
            compare(plan("sweep=null"), OPTIONS)
    finally:
        signal.signal(signal.SIGTERM, outside)
    assert ran() == [r["variant"] + "/seed_0" for r in ledger()] == ["dense/seed_0", "ewa/seed_0"]
    assert list(read_results(SAVE / "toys.json")["variants"]) == ["dense", "ewa"]
    compare(plan("sweep=null"), OPTIONS)
    assert ran() == ["dense/seed_1", "ewa/seed_1"]
    assert len(ledger()) == 4


def test_what_finished_without_a_ledger_is_added(plan: Make, trainer: Callable[[str], None]) -> None:
    trainer(WRITE)
    made = plan("sweep=null")
    compare(made, Options(jobs=1, costs=False))
    compare(made, OPTIONS)
    assert len(ledger()) == 4


def test_runs_of_other_settings_do_not_count(
    plan: Make, trainer: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(WRITE)
    compare(plan("sweep=null", "seeds=[0]"), OPTIONS)
    Path("runs").rename("elsewhere")
    ran()
    capsys.readouterr()
    compare(plan("sweep=null", "seeds=[0]", changes=["train.steps=3"]), OPTIONS)
    assert "2 runs in saved/toys.runs.jsonl are not of this comparison as it stands" in capsys.readouterr().out
    assert ran() == ["dense/seed_0", "ewa/seed_0"]
    assert len(ledger()) == 4  # those of both settings


def test_a_line_without_its_end_spoils_no_other(plan: Make, trainer: Callable[[str], None]) -> None:
    """As after an editor, or after `cat` of two ledgers."""
    trainer(WRITE)
    made = plan("sweep=null", "seeds=[0]")
    compare(made, OPTIONS)
    lines = (SAVE / "toys.runs.jsonl").read_text().splitlines()
    Path("runs").rename("elsewhere")
    (SAVE / "toys.runs.jsonl").write_text(lines[0])
    ran()
    compare(made, OPTIONS)
    assert len(ran()) == 1
    assert len(ledger()) == 2


EDITS = [
    {"variant": ["dense"]}, {"seed": "0"}, {"value": "x"}, {"fold": {}}, {"date": 5}, {"settings": None},
    {"summary": []}, {"summary": {}}, {"summary": {"main_metric": "accuracy", "test_accuracy_merged": "x"}},
]  # fmt: skip


@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_an_edited_line_is_named_before_anything_is_restored(
    edit: dict[str, Any], plan: Make, trainer: Callable[[str], None]
) -> None:
    trainer(WRITE)
    made = plan("sweep=null", "seeds=[0]")
    compare(made, OPTIONS)
    records = [json.loads(line) for line in (SAVE / "toys.runs.jsonl").read_text().splitlines()]
    records[1] |= edit
    (SAVE / "toys.runs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    Path("runs").rename("elsewhere")
    with pytest.raises(ConfigError, match=r"saved/toys.runs.jsonl, line 2: not a finished run"):
        compare(made, OPTIONS)
    assert not Path("runs").exists() or not [*Path("runs").rglob("summary.json")]


@pytest.mark.parametrize("line", ["{", "[]", '{"variant": "dense"}', "null"])
def test_a_damaged_line_is_one_line(plan: Make, line: str) -> None:
    made = plan("sweep=null")
    SAVE.mkdir()
    (SAVE / "toys.runs.jsonl").write_text(line + "\n")
    with pytest.raises(ConfigError, match=r"saved/toys.runs.jsonl, line 1: not a finished run"):
        Ledger(made, SAVE).restore()


def test_the_settings_are_all_that_a_run_depends_on(plan: Make) -> None:
    made = plan(changes=[])
    first = made.resolve(made.run("ewa", 1e-3, 0))
    assert settings(first) == settings(first.model_copy(update={"output": "elsewhere"}))
    moved = first.data.model_copy(update={"root": "elsewhere"})
    assert settings(first) == settings(first.model_copy(update={"data": moved}))
    free = ["tensorboard={}", "wandb=null", "train.keep=5", "train.sharding=fsdp", "device=cpu"]
    assert settings(first) == settings(plan(changes=free).resolve(made.run("ewa", 1e-3, 0)))
    runs = (made.run("ewa", 1e-2, 0), made.run("ewa", 1e-3, 1), made.run("dense", 1e-3, 0))
    hashes = {settings(first), *(settings(made.resolve(run)) for run in runs)}
    start = Path("start.pt")
    for content in (b"one", b"other"):
        start.write_bytes(content)
        os.utime(start, ns=(0, len(content)))
        hashes.add(settings(first.model_copy(update={"init_from": str(start)})))
    assert len(hashes) == 6


def test_runs_on_other_data_are_told(plan: Make) -> None:
    made = plan("sweep=null", "seeds=[0]")
    finish(made, made.run("dense", None, 0), data="0123")
    finish(made, made.run("ewa", None, 0), data="4567")
    with pytest.raises(ConfigError, match="saw different data"):
        compare(made, OPTIONS)


def test_one_thread_a_run_is_what_the_environment_says(plan: Make, trainer: Callable[[str], None]) -> None:
    """As the commands of the plan have it: `OMP_NUM_THREADS=1 pc-ewa compare ... --jobs N`."""
    trainer(f"echo $OMP_NUM_THREADS >> threads; {WRITE}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        compare(plan("sweep=null", "seeds=[0]"), Options(jobs=2, costs=False))
    assert Path("threads").read_text().split() == ["1", "1"]
