"""Examples in docstrings run, every public name has one, and arguments are described once."""

import doctest
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import pc_ewa
import pc_ewa.config
import pc_ewa.data
import pc_ewa.ewa
import pc_ewa.inference
import pc_ewa.models
from pc_ewa.models import MODELS

ROOMS = (pc_ewa.models, pc_ewa.ops, pc_ewa.ewa, pc_ewa.inference, pc_ewa.data, pc_ewa.config)
PUBLIC = {f"{room.__name__}.{name}": getattr(room, name) for room in ROOMS for name in room.__all__}
PUBLIC["pc_ewa.Error"] = pc_ewa.Error
PUBLIC |= {f"pc_ewa.models.{model.__name__}": model for model in MODELS.values()}
PUBLIC = {name: value for name, value in PUBLIC.items() if inspect.isclass(value) or inspect.isfunction(value)}
WITH_EXAMPLE = {name: value for name, value in PUBLIC.items() if ">>>" in (value.__doc__ or "")}


def test_every_public_name_has_an_example() -> None:
    # A section of the config is shown by its keys, on a page that is made from them.
    missing = {name for name in PUBLIC if not name.startswith("pc_ewa.config")} - set(WITH_EXAMPLE)
    assert missing == {"pc_ewa.ops.backend"}, "its answer depends on the machine"


@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    value = WITH_EXAMPLE[name]
    known = {"torch": torch, "nn": torch.nn, "pc_ewa": pc_ewa}
    (example,) = doctest.DocTestFinder(recurse=False).find(value, name, module=inspect.getmodule(value), globs=known)
    printed: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(example, out=printed.append)
    assert result.attempted >= 2
    assert result.failed == 0, "".join(printed)


def described(doc: str | None) -> set[str]:
    """Names in the section `Args:` of a docstring."""
    section = re.search(r"^( *)Args:\n((?:\1 +.*\n|\n)+)", inspect.cleandoc(doc or "") + "\n", re.MULTILINE)
    return set(re.findall(r"^    (\w+):", section[2], re.MULTILINE)) if section else set()


@pytest.mark.parametrize("name", MODELS)
def test_every_argument_of_a_model_is_described_at_its_class_or_where_it_points_to(name: str) -> None:
    model: Any = MODELS[name]
    arguments, own = set(inspect.signature(model).parameters), described(model.__doc__)
    others = [other for other in MODELS.values() if f"`{other.__name__}`" in model.__doc__]
    shared = described(pc_ewa.models.__doc__).union(*(described(other.__doc__) for other in others))
    assert own <= arguments
    assert arguments - own <= shared
