"""The notebooks: every cell runs, with toy settings; what they show on GitHub is small and free of errors."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from pc_ewa import cli

FOLDER = Path(__file__).parent.parent / "examples" / "notebooks"
# Settings of the first cell, as small as they can be.
TOY = {
    "any_vit": {"EPOCHS": 1, "SEEDS": 2},
    "own_shapes": {"EPOCHS": 1, "SHAPES": 8, "POINTS": 64},
}


def cells(name: str, kind: str) -> list[dict[str, Any]]:
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def command(line: str) -> None:
    """Run `!pc-ewa ...` in this process."""
    assert cli.main(shlex.split(line)) == 0, line


def execute(name: str) -> dict[str, Any]:
    """Run all cells in one namespace, which is returned, as a notebook does."""
    names: dict[str, Any] = {"__name__": "__main__", "display": lambda *_: None, "_command": command}
    for position, cell in enumerate(cells(name, "code")):
        code = re.sub(r"(?m)^( *)!pc-ewa (.*)", lambda m: f"{m[1]}_command(f{m[2]!r})", "".join(cell["source"]))
        exec(compile(code, f"{name}.ipynb, cell {position}", "exec"), names)
        if position == 0:
            assert TOY[name].keys() <= names.keys()
            names |= TOY[name]
    return names


def test_any_vit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    names = execute("any_vit")
    assert len(names["history"]) == 9
    assert names["share_rate"][-1] == pytest.approx(0.3)
    assert len(names["differences"]) == 2
    printed = capsys.readouterr().out
    assert "parameters while training" in printed
    assert "standard error of one accuracy" in printed


def test_own_shapes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    names = execute("own_shapes")
    assert names["test"].class_names == ("chair", "shelf", "stool", "table")
    assert len(names["guesses"]) == len(names["test"]) >= 4
    work = tmp_path / "runs" / "own_shapes"
    for file in ("shapes.h5", "classes.png", "spread.png", "wrong.csv", "mistakes.png", "model.pt2"):
        assert (work / file).is_file(), file


@pytest.mark.parametrize("name", TOY)
def test_outputs_are_small_and_free_of_errors_and_of_places_on_a_machine(name: str) -> None:
    for cell in cells(name, "code"):
        outputs = json.dumps(cell["outputs"])
        assert len(outputs) <= 100_000
        assert "ename" not in outputs
        assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users)/", outputs)
    assert any(cell["outputs"] for cell in cells(name, "code"))


def test_every_notebook_is_run_here() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {*TOY}


@pytest.mark.parametrize("name", TOY)
def test_links_of_the_notebooks_lead_somewhere(name: str) -> None:
    text = "".join("".join(cell["source"]) for cell in cells(name, "markdown"))
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    assert all((FOLDER / link.partition("#")[0]).is_file() for link in links if "://" not in link)
