"""Checks before a comparison starts: folders, initial weights, data."""

import os
from pathlib import Path

from pc_ewa.compare.comparison import FILES, PICTURE, RESULTS
from pc_ewa.compare.plan import Plan
from pc_ewa.compare.sweep import validation_scores
from pc_ewa.config import Experiment
from pc_ewa.errors import ConfigError
from pc_ewa.train.run_folder import RunFolder
from pc_ewa.train.setup import check_initial_weights
from pc_ewa.train.splits import load_splits


def check_runs(plan: Plan) -> None:
    """Check the run folders, the initial weights, the data, and the validation split that a sweep needs.

    Raises:
        Error: a missing file, a path that is occupied, or a run folder with a run of other settings.
    """
    _check_folders(plan)
    has_validation: dict[str, bool] = {}
    for variant in plan.variants:
        check_initial_weights(plan.resolve(plan.run(variant, plan.values[0], plan.seeds[0])))
        for value in plan.values:
            experiment = plan.resolve(plan.run(variant, value, plan.seeds[0]))
            if not _load_data(experiment, has_validation) and plan.sweep:
                raise ConfigError(
                    f"variant {variant}: the sweep needs a validation part to choose on, but data.val_fraction=0; "
                    "raise it or set sweep=null"
                )


def check_save(folder: Path, name: str) -> None:
    """Create the folder for copies of the results of the comparison `name`.

    Raises:
        ConfigError: a folder that cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        problem = "" if os.access(folder, os.W_OK) else "it cannot be written"
    except OSError as error:
        problem = str(error.strerror)
    taken = [path for file in (RESULTS, PICTURE) if (path := copied(name, file, folder)).is_dir()]
    if taken:
        problem = f"{taken[0]} is a folder"
    if problem:
        raise ConfigError(f"--save {folder}: {problem}; name a folder for the copies")


def _check_folders(plan: Plan) -> None:
    # A folder without a run has no config to compare: the check is then only whether it can be written, for which any
    # experiment will do.
    RunFolder(plan.output).check(plan.experiment)
    for name in FILES:
        if (plan.output / name).is_dir():
            raise ConfigError(f"{plan.output / name} is a folder, where the results go; move it or set output=...")
    seeds = sorted({*plan.seeds, *(plan.sweep.seeds if plan.sweep else [])})
    for variant in plan.variants:
        for value in validation_scores(plan, variant) if plan.sweep else [None]:
            for run in plan.runs(variant, value, seeds):
                run.files.check(plan.resolve(run) if run.files.is_begun else plan.experiment)


def _load_data(experiment: Experiment, has_validation: dict[str, bool]) -> bool:
    """Load datasets that were not loaded yet. Returns True if the experiment has a validation split."""
    for data in (experiment.data, *([experiment.probe.data] if experiment.probe else [])):
        key = data.model_dump_json()
        if key not in has_validation:
            has_validation[key] = load_splits(data, experiment.seed).val is not None
    return has_validation[experiment.data.model_dump_json()]


def copied(name: str, file: str, folder: Path) -> Path:
    """Return the path of a copy of a file of the comparison `name`."""
    return folder / f"{name}{Path(file).suffix}"
