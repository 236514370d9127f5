"""`pc-ewa benchmark reliability` disturbs runs and files, and its page says what came of it."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pc_ewa.benchmark import damage, disturbed, reliability
from pc_ewa.benchmark.reliability import PARTS, Plan, as_page, measure, read, save
from pc_ewa.data.formats.readers import Shape, read_shape
from pc_ewa.errors import DataError

Tool = Callable[..., Any]
HOSTILE = ("HDF5: external link", "pt: code in an archive", "YAML: aliases of aliases")


@pytest.mark.slow
def test_each_part_runs_and_holds(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    plan = Plan(kills=2, flips=4, cases=110, minutes=0.02, hostile=HOSTILE, steps=6)
    measure(PARTS, plan, lambda part, measured: save(page, part, measured))
    results = {part: measured["result"] for part, measured in read(tmp_path / "page.json").items()}
    assert list(results) == list(PARTS)
    kill = results["kill"]
    assert (kill["trials"], kill["identical"], kill["aimed"], kill["differing"]) == (2, 2, 1, [])
    assert kill["compared"] > 200
    for kind in (".pt", ".safetensors"):
        assert results["flips"][kind]["missed"] == 0
        assert results["flips"][kind]["noticed"] > 0
    assert [*results["hostile"]] == [*HOSTILE]
    assert [one["problems"] for one in results["hostile"].values()] == [[]] * 3
    assert results["fuzz"]["failures"] == []
    for kind in results["fuzz"]["kinds"].values():
        assert kind["refused"] + kind["sound"] == kind["cases"] == 10
    assert results["soak"]["exit_code"] == 143
    assert results["soak"]["memory"]["first"] > 1e7
    assert "2 of 2 killed runs" in page.read_text()
    assert "Not measured" not in page.read_text()


def test_the_page_is_that_of_its_figures() -> None:
    docs = Path(__file__).parents[2] / "docs"
    figures = read(docs / "reliability.json")
    assert as_page(figures) == (docs / "reliability.md").read_text(encoding="utf-8")
    assert list(figures) == list(PARTS)


def test_a_tensor_that_differs_in_one_bit_is_seen() -> None:
    content = {"model": {"w": np.float32(1).tobytes()}, "seconds": 1.0, "scores": [0.5, float("nan")]}
    same = {**content, "seconds": 2.0, "scores": [0.5, float("nan")]}
    assert dict(disturbed.leaves(content, "a")) == dict(disturbed.leaves(same, "a"))
    changed = {**content, "scores": [0.5, 0.25]}
    assert dict(disturbed.leaves(content, "a")) != dict(disturbed.leaves(changed, "a"))


def test_sound_samples_are_sound_and_edits_differ(tmp_path: Path) -> None:
    for kind, content in damage.samples().items():
        path = tmp_path / f"a.{kind}"
        path.write_bytes(content)
        shape = read_shape(path)
        assert len(np.unique(shape.vertices, axis=0)) == 4
        assert damage.is_sound(shape)
        assert damage.edit(content, random.Random(1)) == damage.edit(content, random.Random(1)) != content
    assert not damage.is_sound(Shape(np.full((2, 3), np.nan)))
    assert not damage.is_sound(Shape(np.zeros((2, 3)), np.array([[0, 1, 2]])))


def test_what_fails_is_said(tmp_path: Path) -> None:
    """A page hides nothing: differing runs, missed bits, files that were not refused, growth."""
    failed = {"seconds": None, "memory": None, "said": "", "problems": ["exit code 1, 12 lines"]}
    weight = {"first": 1e8, "last": 1.5e8, "most": 2e8}
    same = {"first": 1, "last": 1, "most": 1}
    soaked = {"minutes": 1, "steps": 9, "exit_code": 143, "memory": weight, "files": same, "threads": same}
    assert reliability.verdict("soak", soaked).startswith("NOT flat over 1 minutes")
    about = {"command": "c", "date": "d", "hardware": "h", "seconds": 1}
    text = as_page({"hostile": {**about, "result": {"a file": failed}}})
    assert "0 of 1 hostile files refused" in text
    assert "exit code 1, 12 lines" in text
    assert text.count("Not measured.") == 4


@pytest.mark.parametrize("content", ["", "[]", '{"kill": {}}', json.dumps({"kill": 1})])
def test_figures_that_are_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "page.json").write_text(content)
    with pytest.raises(DataError, match=r"page\.json does not hold figures"):
        read(tmp_path / "page.json")


def test_bad_arguments_are_one_line(tool: Tool, tmp_path: Path) -> None:
    result = tool("benchmark", "reliability", "--only", "kil")
    assert result[::2] == (2, "error: unknown part 'kil'; did you mean 'kill'?\n")
    assert "above 0" in tool("benchmark", "reliability", "--kills=0").err
    assert "there is no folder" in tool("benchmark", "reliability", "--save", tmp_path / "a" / "b.md").err
