"""Run folders as finished runs of a comparison leave them, without a run."""

import json
from typing import Any

from pc_ewa.config import dump
from pc_ewa.study import Plan
from pc_ewa.study.plan import Run


def finish(plan: Plan, run: Run, val: float | None = 0.5, test: float = 0.5, **more: Any) -> None:
    """Leave the folder of a finished run."""
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "config.yaml").write_text(dump(plan.resolve(run)))
    figure = f"test_{plan.task.headline}"
    summary = {
        "headline": plan.task.headline,
        "seed": run.seed,
        "steps": 4,
        f"val_{plan.task.headline}": val,
        f"val_{plan.task.headline}_best": val,
        "val_shapes": 3,
        "test_shapes": 12,
        **{f"{figure}_{state}": test for state in ("merged", "merged_best", "unmerged", "unmerged_best")},
        **more,
    }
    (run.folder / "summary.json").write_text(json.dumps(summary))
