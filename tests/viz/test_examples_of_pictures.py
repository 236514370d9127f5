"""Examples in docstrings of pictures and pages run."""

import doctest
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pc_ewa
from pc_ewa.report.html import element
from pc_ewa.viz import View, show, upright


@pytest.mark.parametrize("value", [show, upright, View, element], ids=lambda value: value.__name__)
def test_examples_run(value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    known = {"np": np, "pc_ewa": pc_ewa, value.__name__: value}
    (example,) = doctest.DocTestFinder(recurse=False).find(value, module=inspect.getmodule(value), globs=known)
    result = doctest.DocTestRunner(verbose=False).run(example)
    assert (result.attempted, result.failed) == (1, 0)
