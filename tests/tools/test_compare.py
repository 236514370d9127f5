"""pc-ewa compare: folders of finished runs, and a comparison from its file to its table."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Tool = Callable[..., Any]


def finished(source: Path, folder: Path, seed: int, accuracy: float, **config: object) -> Path:
    """A copy of a finished run, with another seed and accuracy."""
    folder.mkdir()
    content = yaml.safe_load((source / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**content, "seed": seed, "output": str(folder), **config}))
    summary = json.loads((source / "summary.json").read_text())
    changed = {"seed": seed, "output": str(folder), "test_accuracy_merged": accuracy}
    (folder / "summary.json").write_text(json.dumps(summary | changed))
    return folder


def row(table: str, title: str) -> list[str]:
    """The cells of a row of the table."""
    line, *_ = (line for line in table.splitlines() if line.startswith(f"| {title} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_seeds_of_one_setting_are_put_together(tool: Tool, trained: Any, tmp_path: Path) -> None:
    ewa = [finished(trained.folder, tmp_path / f"ewa_{i}", i, 0.5 + 0.1 * i) for i in range(3)]
    dense = finished(trained.folder, tmp_path / "dense", 0, 0.25, ewa=None)
    code, out, err = tool("compare", *ewa, dense)
    assert (code, err) == (0, "")
    # 50, 60 and 70 %: their sample deviation is 10.
    assert row(out, f"{tmp_path}/ewa_0 and alike")[1] == "60.0 ± 10.0"
    assert f"{tmp_path}/ewa_0 and alike: seeds 0, 1, 2 (50.0, 60.0, 70.0); " in out
    assert row(out, f"{tmp_path}/dense")[1] == "25.0"
    assert f"{tmp_path}/dense: seeds 0 (25.0); " in out


def test_the_same_seed_of_a_setting_counts_once(tool: Tool, trained: Any, tmp_path: Path) -> None:
    twice = [finished(trained.folder, tmp_path / name, 7, 0.5) for name in ("a", "b")]
    code, out, err = tool("compare", *twice)
    assert (code, out) == (2, "")
    assert all(fact in err for fact in (f"{tmp_path}/b", "seed=7", "twice"))


def test_runs_with_different_metrics_are_refused(tool: Tool, trained: Any, tmp_path: Path) -> None:
    other = finished(trained.folder, tmp_path / "other", 0, 0.5, ewa=None)
    summary = json.loads((other / "summary.json").read_text())
    (other / "summary.json").write_text(json.dumps(summary | {"main_metric": "loss", "test_loss_merged": 1.0}))
    code, out, err = tool("compare", trained.folder, other)
    assert (code, out) == (2, "")
    assert all(fact in err for fact in (str(other), "loss", "accuracy"))


def test_a_run_of_an_earlier_version_is_read(tool: Tool, trained: Any, tmp_path: Path) -> None:
    run = finished(trained.folder, tmp_path / "run", 0, 0.5)
    old = {"main_metric": "headline", "test_samples": "test_shapes", "val_samples": "val_shapes"}
    summary = {old.get(k, k): value for k, value in json.loads((run / "summary.json").read_text()).items()}
    assert "headline" in summary
    (run / "summary.json").write_text(json.dumps(summary))
    code, out, err = tool("compare", run)
    assert (code, err) == (0, "")
    assert row(out, str(run))[1] == "50.0"


def test_what_is_not_a_finished_run_is_one_line(tool: Tool, trained: Any, tmp_path: Path) -> None:
    shutil.copy(trained.folder / "config.yaml", tmp_path)
    code, out, err = tool("compare", trained.folder, tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {tmp_path} is not a finished run; ")
    assert err.count("\n") == 1


def test_runs_that_are_not_there_are_not_taken_for_configs(tool: Tool) -> None:
    assert tool("compare", "runs/none", "runs/dense").err == "error: runs/none is not a folder; name finished runs\n"


def test_settings_are_compared_with_the_first_by_seed(tool: Tool, trained: Any, tmp_path: Path) -> None:
    dense = [finished(trained.folder, tmp_path / f"dense_{i}", i, 0.5 + 0.1 * i, ewa=None) for i in range(2)]
    ewa = [finished(trained.folder, tmp_path / f"ewa_{i}", i, 0.6 + 0.104 * i) for i in range(2)]
    code, out, err = tool("compare", *dense, *ewa)
    assert (code, err) == (0, "")
    # Differences of 10.0 and 10.4 points: mean 10.2, standard error 0.2, t(1) = 12.7062.
    assert "gain of 10.2 points (7.7 to 12.7)" in row(out, f"{tmp_path}/ewa_0 and alike")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.yaml", "[a, b]"),
        ("summary.json", "{}"),
        ("summary.json", "[]"),
        ("summary.json", '{"main_metric": []}'),
    ],
)
def test_a_damaged_run_is_one_line(tool: Tool, trained: Any, tmp_path: Path, file: str, content: str) -> None:
    run = finished(trained.folder, tmp_path / "run", 0, 0.5)
    (run / file).write_text(content)
    code, out, err = tool("compare", trained.folder, run)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {run}/{file} is damaged; ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "flags", [["--check"], ["--jobs", "0"], ["--only", "dense"], ["--no-costs"], ["--save", "docs"]], ids=lambda f: f[0]
)
def test_folders_take_no_flags(tool: Tool, trained: Any, flags: list[str]) -> None:
    code, out, err = tool("compare", trained.folder, *flags)
    assert (code, out) == (2, "")
    assert err == f"error: {flags[0]} is for a comparison, not for folders of finished runs; leave it out\n"


@pytest.fixture
def toys(toy_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A comparison of dense and of what cannot be built, with a sweep; its folder is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    Path("toys.yaml").write_text(
        f"""
title: Toys
experiment: {toy_config}
seeds: [0, 1]
sweep: {{key: train.lr, values: [1e-3, 1e-2]}}
variants:
  dense: {{title: dense, changes: [ewa=null]}}
  bad: {{title: bad, changes: [ewa.layers=last-9]}}
"""
    )
    return Path("toys.yaml")


@pytest.mark.slow
def test_a_comparison_from_its_file_to_its_table(tool: Tool, toys: Path) -> None:
    """What breaks is told, and the rest goes on; what is finished is never run again."""
    code, out, err = tool("compare", toys, "--check")
    assert (code, err) == (0, "")
    assert "Toys: 0 runs done, 6 to do" in out
    assert not Path("runs").exists()

    code, out, err = tool("compare", toys, "--jobs", 2)
    assert code == 1
    assert sorted(re.findall(r"^broken: bad/lr_(\S+)/seed_0: ewa: ", err, flags=re.MULTILINE)) == ["0.001", "0.01"]
    assert Path("runs/compare/toys/bad/lr_0.01/seed_0.log").is_file()
    folder = Path("runs/compare/toys")
    results = json.loads((folder / "results.json").read_text())
    dense = results["variants"]["dense"]
    runs = sorted(path.parent for path in folder.rglob("summary.json"))
    assert [str(run.relative_to(folder)) for run in runs] == sorted(
        ["dense/lr_0.001/seed_0", "dense/lr_0.01/seed_0", f"dense/lr_{dense['value']:g}/seed_1"]
    )
    for seed in (0, 1):
        summary = json.loads((folder / f"dense/lr_{dense['value']:g}/seed_{seed}/summary.json").read_text())
        assert dense["scores"]["merged"][str(seed)] == summary["test_accuracy_merged"]
    assert dense["costs"]["params_inference"] == summary["params_merged"]
    assert dense["costs"]["peak_memory"] > 0
    assert results["command"] == "pc-ewa compare toys.yaml"
    assert list(results["variants"]) == ["dense"]
    assert results["left_out"] == [{"title": "bad", "why": "no value of the sweep has a score on every seed"}]
    assert (folder / "curves.png").is_file()

    written = {run: (run / "summary.json").stat().st_mtime_ns for run in runs}
    code, again, err = tool("compare", toys, "--only", "dense", "--no-costs")
    assert (code, err) == (0, "")
    assert "to do" not in again
    assert {run: (run / "summary.json").stat().st_mtime_ns for run in runs} == written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.yaml"], "none.yaml is not a file"),
        (["toys.yaml", "sweeps=null"], "unknown key 'sweeps'; did you mean 'sweep'?"),
        (["toys.yaml", "--only", "dense,rup"], "--only dense,rup: no variant 'rup'; choose from dense, bad"),
        (["toys.yaml", "--jobs", "0"], "--jobs 0; give a whole number from 1 on"),
        (["toys.yaml", "--save", "toys.yaml"], "--save toys.yaml: File exists; name a folder for the copies"),
        (["toys.yaml", 'output="a\\0b"'], "no folder has a NUL in its name"),
        ([".", "toys.yaml"], "toys.yaml is not a folder; name finished runs"),
    ],
)
def test_a_wrong_command_is_one_line(tool: Tool, toys: Path, arguments: list[str], message: str) -> None:
    code, out, err = tool("compare", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not Path("runs").exists()


def test_runs_on_different_data_do_not_compare(tool: Tool, trained: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained.folder, other)
    config = yaml.safe_load((other / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump(config | {"recipe": "official"}))
    summary = json.loads((other / "summary.json").read_text())
    (other / "summary.json").write_text(json.dumps(summary | {"test_samples": 99}))
    code, out, err = tool("compare", trained.folder, other)
    assert (code, out) == (2, "")
    assert "99 test samples" in err
    assert err.count("\n") == 1
