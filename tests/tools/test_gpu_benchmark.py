"""benchmarks/gpu.sh: rehearsed on a CPU, part by part; and what it says where there is no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pc_ewa.benchmark import gpu, gpu_page, gpu_steps
from pc_ewa.train import compiled

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "benchmarks" / "gpu.sh"


def rehearse(name: str, out: Path) -> dict[str, Any]:
    try:
        code = gpu.main([name, str(out), "--rehearse"])
    except SystemExit as stop:
        code = stop.code
    part: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
    assert (code == 0) == (part["problems"] == [])
    return part


def test_parts_are_rehearsed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = {name: rehearse(name, tmp_path) for name in ("tests", "steps", "syncs", "train")}
    assert not [part["problems"] for part in parts.values() if part["problems"]]
    assert all(part["rehearsal"] for part in parts.values())
    assert all(part["tables"] for part in parts.values())
    assert parts["steps"]["numbers"]["peaks"].keys() == {"bf16", "tf32", "fp32", "copy"}
    assert all(0 < step["host_seconds"] <= step["seconds"] for step in parts["steps"]["numbers"]["steps"])
    assert all(step["flop"] > 0 for step in parts["steps"]["numbers"]["steps"])
    assert parts["train"]["numbers"]["summaries"]["EWA"]["mixtures"] == 1
    assert torch.get_float32_matmul_precision() == "highest"
    capsys.readouterr()
    assert gpu_page.main([str(tmp_path)]) == 0
    page = capsys.readouterr().out
    assert page.count("A rehearsal on a CPU") == 4
    assert "| tf32, as it is, EWA" in page


@pytest.mark.slow
def test_the_other_parts_are_rehearsed_too(tmp_path: Path) -> None:
    parts = {name: rehearse(name, tmp_path) for name in ("compiled", "ops")}
    assert not [part["problems"] for part in parts.values() if part["problems"]]
    assert [step["compile"] for step in parts["compiled"]["numbers"]["steps"]] == ["default"]
    assert compiled.BACKEND == "inductor"


def test_a_rehearsal_is_not_put_into_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = {"part": "steps", "rehearsal": True, "date": "d", "hardware": "h", "triton": "3", "seconds": 1.0}
    part |= {"problems": ["one"], "tables": [{"title": "T", "header": ["", "ms"], "rows": [["a", "1"]], "notes": []}]}
    (tmp_path / "steps.json").write_text(json.dumps(part))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- measured -->\nold\n<!-- /measured -->\nafter\n")
    assert gpu_page.main([str(tmp_path), "--into", str(page)]) == 2
    (tmp_path / "steps.json").write_text(json.dumps(part | {"rehearsal": False}))
    assert gpu_page.main([str(tmp_path), "--into", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- measured -->\n")
    assert text.endswith("<!-- /measured -->\nafter\n")
    assert "| a | " in text
    assert "- one" in text
    assert "old" not in text
    (tmp_path / "steps.json").write_text("{}")
    capsys.readouterr()
    assert gpu_page.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_variant_that_fails_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = gpu_steps.count_flop

    def broken(plan: Any, ewa: bool) -> int:
        if ewa:
            raise RuntimeError("no such kernel")
        return count(plan, ewa)

    monkeypatch.setattr(gpu_steps, "count_flop", broken)
    monkeypatch.setattr(gpu_steps, "profile", lambda plan, variant: gpu_steps.Table("P", ["", ""], [["a", "b"]]))
    part = rehearse("steps", tmp_path)
    assert [step["ewa"] for step in part["numbers"]["steps"]] == [False]
    assert part["problems"] == ["tf32, as it is, EWA: RuntimeError: no such kernel"]


def test_without_a_gpu_it_is_one_line_and_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        return
    assert gpu.main(["steps", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: torch finds no CUDA device here")
    assert said.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--rehearse"], ["out", "stepz"], ["out", ""]])
def test_the_script_refuses_what_it_does_not_know(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(["bash", str(SCRIPT), *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "tests" in done.stderr
    assert not list(tmp_path.iterdir())


def test_every_part_has_its_limit_and_all_take_25_minutes_at_most() -> None:
    text = SCRIPT.read_text()
    limits = dict(part.strip("[]").split("]=") for part in text.split("limit=(")[1].split(")")[0].split())
    assert limits.keys() == gpu.PARTS.keys()
    assert sum(map(int, limits.values())) <= 25 * 60
    assert max(map(int, limits.values())) < 9 * 60


@pytest.mark.slow
def test_the_script_rehearses_and_goes_on_after_a_part_that_fails(tmp_path: Path) -> None:
    """The tests are not to be had by an environment without pytest."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path), "PYTHON": sys.executable}
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'pytest' else find(name, *more)\n"
    )
    command = ["bash", str(SCRIPT), "--rehearse", "out", "tests", "syncs"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr == f"error: failed: tests; see {tmp_path}/out/log.txt\n"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"tests.json", "syncs.json", "log.txt", "gpu.md"}
    assert "pip install" in (tmp_path / "out" / "gpu.md").read_text()


@pytest.mark.slow
def test_the_script_without_a_gpu_is_one_line_and_2(tmp_path: Path) -> None:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", str(SCRIPT), str(tmp_path / "out")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: torch finds no CUDA device here")
    assert not (tmp_path / "out").exists()
