"""From whatever holds a trained model to what is exported, and to the data that it is measured on."""

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
    """Load what `pc_ewa.load_model` takes, with the experiment; mixtures of experts are not merged.

    Raises:
        CheckpointError: nothing there, or a file that cannot be read.
        ConfigError: a config or override that is wrong.
    """
    place = find(source)
    if place.is_dir():
        refuse_for_folder(place, config, class_names)
        restored = _of_folder(place, overrides or [])
    else:
        restored = restore(place, config, overrides, class_names)
    if not restored.clouds and restored.experiment.data.name != own_files.NAME:
        with suppress(Error):  # a file of an earlier version: the data knows, if it is still there
            restored.ask_data()
    if parts_of := restored.clouds.get("parts_of"):
        restored.model.parts_of = parts_of
    return restored


def knowledge(restored: Restored) -> dict[str, Any]:
    """Return what is written into the exported file, as arguments of `export_onnx`."""
    return {"class_names": restored.class_names, "preprocessing": asdict(restored.preprocessing)}


def measure(restored: Restored, exported: nn.Module, split: Split, samples: int | None = None) -> Score:
    """Measure an exported model on a split of the dataset that the run was trained on.

    Args:
        restored: the run's model.
        exported: the exported one.
        split: of the dataset.
        samples: of the split, spread evenly over it; None for all.

    Raises:
        DataError: the dataset is missing.
        CheckpointError: it does not fit the model.
    """
    objective = create_objective(restored.experiment)
    splits = restored.splits()
    if samples is not None:
        clouds = splits.named(split)
        kept = clouds.select(torch.arange(min(samples, len(clouds))) * len(clouds) // min(samples, len(clouds)))
        splits = Splits(**(splits._asdict() | {split: kept}))
    return objective.evaluate(exported, splits, split, torch.device("cpu"))


def _of_folder(folder: Path, overrides: list[str]) -> Restored:
    """Load a folder of `save_pretrained`; its experiment is the one that it keeps of the training."""
    model = load_model(folder, device="cpu")
    content = (model.training_record or {}).get("config")
    if not content or model.preprocessing is None or model.built_as is None:
        raise ConfigError(f"{folder} does not say how its model was trained; export it with pc_ewa.export.export")
    try:
        experiment = resolve(apply_overrides({"output": "runs/export", **content}, overrides))
    except ConfigError as error:
        raise ConfigError(f"training.config in {folder / CONFIG}: {error}") from None
    decided = {name: model.built_as[name] for name in DECIDED_BY_DATA if name in model.built_as}
    about = asdict(model.preprocessing)
    clouds = {"num_points": about["stored_points"], "up_axis": about["up_axis"]}
    return Restored(experiment, list(model.class_names or ()), decided, model, clouds)
