"""What finished runs left."""

import json
from typing import Any

from pc_ewa.compare.plan import Run
from pc_ewa.errors import CheckpointError


def read_summary(run: Run) -> dict[str, Any] | None:
    """The summary of a finished run; None for one that is not finished.

    Raises:
        CheckpointError: a damaged file.
    """
    path = run.folder / "summary.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict) or "main_metric" not in content:
        raise CheckpointError(f"{path} is damaged; delete it, and the run ends anew from its last checkpoint")
    return content


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; each has its "step". One that a crash tore is left out."""
    path = run.folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return [content for line in lines if isinstance(content := _parse(line), dict) and "step" in content]


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
