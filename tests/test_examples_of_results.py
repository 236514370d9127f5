"""Examples in the docstrings of scores, trackers and comparisons run."""

import doctest
import inspect
from pathlib import Path

import pytest

import pc_ewa.compare
import pc_ewa.eval
import pc_ewa.trackers

ROOMS = (pc_ewa.eval, pc_ewa.trackers, pc_ewa.compare)
PUBLIC = {f"{room.__name__}.{name}": getattr(room, name) for room in ROOMS for name in room.__all__}
WITH_EXAMPLE = {name: value for name, value in PUBLIC.items() if callable(value) and ">>>" in (value.__doc__ or "")}


@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    value = WITH_EXAMPLE[name]
    (example,) = doctest.DocTestFinder(recurse=False).find(value, name, module=inspect.getmodule(value))
    printed: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(example, out=printed.append)
    assert result.attempted >= 1
    assert result.failed == 0, "".join(printed)
