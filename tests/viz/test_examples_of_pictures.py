"""Examples in docstrings of pictures and pages run."""

import doctest
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

import pc_ewa
import pc_ewa.report
import pc_ewa.viz
from pc_ewa.report.html import element

PUBLIC = [getattr(room, name) for room in (pc_ewa.viz, pc_ewa.report) for name in room.__all__]
WITH_EXAMPLE = [value for value in PUBLIC if callable(value) and ">>>" in (value.__doc__ or "")]


def test_most_public_names_have_an_example() -> None:
    named = {value.__name__ for value in PUBLIC if inspect.isclass(value) or inspect.isfunction(value)}
    assert named - {value.__name__ for value in WITH_EXAMPLE} == {"show_now", "report_after"}, "a display, a run"


@pytest.mark.parametrize("value", [*WITH_EXAMPLE, element], ids=lambda value: value.__name__)
def test_examples_run(value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    known = {"torch": torch, "pc_ewa": pc_ewa, "element": element}
    (example,) = doctest.DocTestFinder(recurse=False).find(value, module=inspect.getmodule(value), globs=known)
    result = doctest.DocTestRunner(verbose=False).run(example)
    assert result.attempted >= 1
    assert result.failed == 0
