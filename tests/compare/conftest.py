"""A comparison of toys."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pc_ewa.compare import Plan, load_plan

SWEEP = {"key": "train.lr", "values": [1e-3, 1e-2], "seeds": [0]}


@pytest.fixture
def comparison_file(toy_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a comparison of dense and EWA, with other keys on top; its folder is the current one."""
    monkeypatch.chdir(tmp_path)

    def write(**keys: Any) -> Path:
        content = {
            "title": "Toys",
            "experiment": str(toy_config),
            "seeds": [0, 1],
            "sweep": SWEEP,
            "variants": {
                "dense": {"title": "dense", "changes": ["ewa=null"]},
                "ewa": {"title": "EWA", "changes": ["ewa.num_experts=2"]},
            },
        }
        Path("toys.yaml").write_text(yaml.safe_dump({**content, **keys}, sort_keys=False))
        return Path("toys.yaml")

    return write


@pytest.fixture
def plan(comparison_file: Callable[..., Path]) -> Callable[..., Plan]:
    """The checked comparison, with other keys on top."""
    return lambda *overrides, **keys: load_plan(comparison_file(**keys), list(overrides), "pc-ewa compare toys.yaml")


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Put a shell script in the place of Python: $folder is the run folder, $@ the command line."""

    def put(script: str) -> None:
        path = tmp_path / "trainer"
        first = 'for last in "$@"; do :; done; folder=$(echo "${last#output=}" | tr -d \'"\'); mkdir -p "$folder"'
        path.write_text(f"#!/bin/sh\n{first}\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return put
