"""Hand the results of a finished run to the trackers: pictures of its model, its report page, its merged files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pc_ewa.train.objectives import Objective
from pc_ewa.train.restore import restore
from pc_ewa.train.run_folder import RunFolder
from pc_ewa.train.splits import Splits
from pc_ewa.train.tracking import Tracker

# Writes a page on the run in a folder. Returns its path and a line for the user; the path is None if it failed.
Report = Callable[[Path], tuple[Path | None, str]]


def hand_over(
    tracker: Tracker,
    folder: RunFolder,
    objective: Objective,
    splits: Splits,
    device: torch.device,
    summary: dict[str, Any],
    report: Report | None = None,
) -> None:
    """Show the merged model of the last step, write the report, and upload the report and the merged files.

    The run is finished by then, so that an error becomes a warning. Call it on the main process alone.

    Args:
        tracker: tracker of the run. Without a tracking service only the report is written.
        folder: folder of the run.
        objective: chooses the pictures.
        splits: the data.
        device: device of the model.
        summary: summary of the run.
        report: writes the report page. None writes none.
    """
    step = summary["steps"]
    if tracker.is_watched:
        with tracker.harmless("pictures for the trackers"):
            # From the file, not from memory: what is shown is what a user will load.
            restored = restore(folder.merged("last"))
            objective.show(tracker, step, restored.model.to(device).eval(), splits)
    if report:
        with tracker.harmless("report page"):
            path, line = report(folder.path)
            tracker.line(line)
            if path:
                tracker.tell(lambda backend: backend.page(step, "report", path))
    if tracker.is_watched:
        with tracker.harmless("merged files for the trackers"):
            _hand_over_files(tracker, folder, objective, splits, summary)


def _hand_over_files(
    tracker: Tracker, folder: RunFolder, objective: Objective, splits: Splits, summary: dict[str, Any]
) -> None:
    metadata = {
        "metrics": {key: value for key, value in summary.items() if key.startswith(("test_", "val_"))},
        "config": objective.experiment.model_dump(mode="json"),
        "class_names": list(splits.train.class_names),
        "step": summary["steps"],
    }
    last, best = folder.merged("last"), folder.merged("best")
    same = summary["best_step"] == summary["steps"]
    tracker.tell(lambda backend: backend.file("merged", last, metadata, ["last", *(["best"] if same else [])]))
    if summary["best_step"] is not None and not same:
        at_best = metadata | {"step": summary["best_step"]}
        tracker.tell(lambda backend: backend.file("merged", best, at_best, ["best"]))
