"""What finished runs left."""

from typing import Any

from pc_ewa.compare.plan import Run
from pc_ewa.train.run_folder import RunFolder


def read_summary(run: Run) -> dict[str, Any] | None:
    """The summary of a finished run; None for one that is not finished."""
    return RunFolder(run.folder).summary()


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return RunFolder(run.folder).metrics()
