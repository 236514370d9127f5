"""Run folders as finished runs of a comparison leave them, without a run."""

from typing import Any

from pc_ewa.compare import Plan
from pc_ewa.compare.plan import Run

# Test scores by state, as parts of that of the merged model.
STATES = {"merged": 1.0, "merged_best": 0.9, "unmerged": 0.8, "unmerged_best": 0.7}


def finish(
    plan: Plan, run: Run, val: float | None = 0.5, test: float = 0.5, best: float | None = None, **more: Any
) -> None:
    """Leave the folder of a finished run; `val` is of the last step, `best` the best of all (default: the same)."""
    run.folder.mkdir(parents=True, exist_ok=True)
    run.files.begin(plan.resolve(run), {})
    key = plan.metric.key
    summary = {
        "main_metric": key,
        "seed": run.seed,
        "steps": 4,
        "mixtures": 0,
        "seconds": {},
        f"val_{key}": val,
        f"val_{key}_best": val if best is None else best,
        "val_samples": 3,
        "test_samples": 12,
        **{f"test_{key}_{state}": part * test for state, part in STATES.items()},
        "test_standard_error_merged": (test * (1 - test) / 12) ** 0.5,
        **more,
    }
    run.files.write_summary(summary)
