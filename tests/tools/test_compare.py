"""tools/compare.py: mean and deviation over the seeds of each setting."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def test_seeds_of_one_setting_are_put_together(tool: Tool, trained: Any, tmp_path: Path) -> None:
    ewa = [finished(trained.folder, tmp_path / f"ewa_{i}", i, 0.5 + 0.1 * i) for i in range(3)]
    dense = finished(trained.folder, tmp_path / "dense", 0, 0.25, ewa=None)
    code, out, err = tool("compare", *ewa, dense)
    assert (code, err) == (0, "")
    first, second = out.split(f"{tmp_path}/dense")
    # 50, 60 and 70 %: their sample deviation is 10.
    assert "60.0 ± 10.0 %   (50.0, 60.0, 70.0)" in first
    assert "seeds 0, 1, 2" in first
    assert "25.0 %" in second


def test_what_is_no_finished_run_is_one_line(tool: Tool, trained: Any, tmp_path: Path) -> None:
    shutil.copy(trained.folder / "config.yaml", tmp_path)
    code, out, err = tool("compare", trained.folder, tmp_path)
    assert (code, out) == (2, "")
    assert err == f"error: {tmp_path} is no finished run; it needs config.yaml and summary.json\n"
