"""Loading of a trained model for export, and its evaluation on the data of its run."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pc_ewa.config import DECIDED_BY_DATA, resolve
from pc_ewa.data import own_files
from pc_ewa.errors import ConfigError, Error
from pc_ewa.eval import Score
from pc_ewa.inference.folder import CONFIG
from pc_ewa.inference.load import find, load_model, refuse_for_folder
from pc_ewa.train.objectives import create_objective
from pc_ewa.train.restore import Restored, Split, restore
from pc_ewa.train.splits import Splits
from pc_ewa.yaml_config import apply_overrides


def load(
    source: str | Path,
    config: str | None = None,
    overrides: list[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> Restored:
    """Load a source of `pc_ewa.load_model` with its experiment. Mixtures of experts are not merged.

    Raises:
        CheckpointError: there is no such file, or it cannot be read.
        ConfigError: a config or override is wrong.
    """
    place = find(source)
    if place.is_dir():
        refuse_for_folder(place, config, class_names)
        restored = _of_folder(place, overrides or [])
    else:
        restored = restore(place, config, overrides, class_names)
    if not restored.clouds and restored.experiment.data.name != own_files.NAME:
        with suppress(Error):  # a file of an earlier version; the data has the rest, if it is still there
            restored.ask_data()
    if parts_of := restored.clouds.get("parts_of"):
        restored.model.parts_of = parts_of
    return restored


def knowledge(restored: Restored) -> dict[str, Any]:
    """Return the class names and the preprocessing of a model, as arguments of `export_onnx`."""
    return {"class_names": restored.class_names, "preprocessing": asdict(restored.preprocessing)}


def measure(restored: Restored, exported: nn.Module, split: Split, samples: int | None = None) -> Score:
    """Evaluate an exported model on a split of the dataset that the run was trained on.

    Args:
        restored: the model of the run.
        exported: the exported model.
        split: a split of the dataset.
        samples: number of samples, spread evenly over the split. None means all.

    Raises:
        DataError: the dataset is missing.
        CheckpointError: the dataset does not fit the model.
    """
    objective = create_objective(restored.experiment)
    splits = restored.splits()
    if samples is not None:
        clouds = splits.named(split)
        kept = clouds.select(torch.arange(min(samples, len(clouds))) * len(clouds) // min(samples, len(clouds)))
        splits = Splits(**(splits._asdict() | {split: kept}))
    return objective.evaluate(exported, splits, split, torch.device("cpu"))


def _of_folder(folder: Path, overrides: list[str]) -> Restored:
    """Load a folder of `save_pretrained`, with the experiment of its training record."""
    model = load_model(folder, device="cpu")
    content = (model.training_record or {}).get("config")
    if not content or model.preprocessing is None or model.built_as is None:
        raise ConfigError(f"{folder} has no record of the training; export its model with pc_ewa.export.export")
    try:
        experiment = resolve(apply_overrides({"output": "runs/export", **content}, overrides))
    except ConfigError as error:
        raise ConfigError(f"training.config in {folder / CONFIG}: {error}") from None
    decided = {name: model.built_as[name] for name in DECIDED_BY_DATA if name in model.built_as}
    about = asdict(model.preprocessing)
    clouds = {"num_points": about["stored_points"], "up_axis": about["up_axis"]}
    return Restored(experiment, list(model.class_names or ()), decided, model, clouds)
