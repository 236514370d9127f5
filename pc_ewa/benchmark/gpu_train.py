"""Training on ModelNet40 at official size on a GPU, dense and EWA, for as many epochs as the time allows."""

import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from pc_ewa.benchmark.gpu_part import Part
from pc_ewa.benchmark.gpu_plan import Plan, Variant
from pc_ewa.benchmark.gpu_steps import prepared, timed
from pc_ewa.benchmark.report import Table, number
from pc_ewa.bundled import bundled
from pc_ewa.errors import ConfigError
from pc_ewa.train import run

GOAL = 600  # seconds for the whole recipe
EPOCHS, STEPS = 300, 307  # of the whole recipe: 9,843 samples in batches of 32
RESERVE = 40  # seconds for reading data, compiling again and testing


def run_train(part: Part) -> None:
    """Choose a compilation mode that works, then train dense and EWA for the same number of epochs."""
    data = dataset()
    mode, seconds = fastest(part)
    arms = (False, True)
    steps_per_epoch = STEPS if data == "modelnet40" else 12
    fits = (part.left - RESERVE) / (steps_per_epoch * sum(seconds.values()))
    # Both trainings must fit, so that an epoch costs the sum of both. 15 % remain for errors of the estimate.
    epochs = max(1, min(part.plan.most_epochs, int(0.85 * fits)))
    print(f"{data}: {epochs} epochs each, train.compile={mode}", flush=True)
    rows: list[list[str]] = []
    summaries: dict[str, Any] = {}
    for ewa in arms:
        variant = Variant("fp32" if part.plan.rehearsal else "bf16", mode, ewa)
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            summary = run(part.plan.experiment(variant, *recipe(part.plan, data, epochs, folder)))
        wall = time.monotonic() - began
        name = "EWA" if ewa else "dense"
        each = summary["seconds"]["train"] / epochs
        whole = EPOCHS * summary["seconds"]["train"] * STEPS / summary["steps"]
        summaries[name] = summary | {"wall_seconds": wall}
        accuracy = f"{100 * summary['test_accuracy_merged']:.2f} %"
        rows.append([name, str(epochs), number(each), number(wall), accuracy, number(whole)])
        header = ["", "epochs", "s an epoch", "s with setup and test", "test accuracy"]
        header.append(f"s for the steps of {EPOCHS} epochs, by arithmetic")
        title = f"{data} at official size, {variant.precision}, train.compile={mode}"
        notes = () if data == "modelnet40" else ("ModelNet40 was not there.",)
        table = Table(title, header, rows, [*notes, f"The goal for all {EPOCHS} epochs is {GOAL} s."])
        part.show([table], summaries=summaries, data=data, mode=mode)


def fastest(part: Part) -> tuple[str | None, dict[bool, float]]:
    """Return the first compilation mode that trains, and the seconds of a step in it by `ewa`."""
    for mode in part.plan.modes:
        try:
            seconds = {}
            for ewa in (False, True):
                precision = "fp32" if part.plan.rehearsal else "bf16"
                with prepared(part.plan, Variant(precision, mode, ewa)) as step:
                    seconds[ewa] = timed(step, part.plan)["seconds"]
            return mode, seconds
        except Exception as error:
            traceback.print_exc()
            part.problem(f"train.compile={mode}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
    raise ConfigError("nothing trains here; see the problems above")


def dataset() -> str:
    """Return the name of the dataset to train on: ModelNet40 if it is prepared, else the bundled furniture."""
    return "modelnet40" if (bundled("datasets") / "modelnet40" / "modelnet40.h5").is_file() else "sweethome3d"


def recipe(plan: Plan, data: str, epochs: int, folder: str | Path) -> list[str]:
    """Return the changes from the official size to the recipe of configs/finetune/modelnet40.yaml.

    There is one validation, at the end.
    """
    return [
        f"output={folder}/run",
        f"data.name={'sweethome3d' if plan.rehearsal else data}",
        "data.val_fraction=0",
        f"train.epochs={epochs}",
        f"train.eval_every={epochs}",
        "train.keep=1",
    ]
