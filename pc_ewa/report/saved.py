"""A folder of `save_pretrained` as a model with its experiment, which names the data that it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pc_ewa.bundled import bundled_models
from pc_ewa.config import Experiment, load_experiment, resolve
from pc_ewa.errors import CheckpointError
from pc_ewa.files import read_json
from pc_ewa.inference.folder import CONFIG, read_folder
from pc_ewa.train.restored import Restored
from pc_ewa.yaml_config import apply_overrides

# Arguments of a model that follow from the data, not from a config.
_DECIDED = ("num_classes", "num_categories", "num_parts")


def saved_folder(source: str) -> Path | None:
    """Return the folder of a saved model, given its path or the name of a bundled model. None if it is neither."""
    path = Path(source)
    return path if (path / CONFIG).is_file() else bundled_models().get(source)


def restore_saved(folder: Path, config: str | None, overrides: list[str]) -> Restored:
    """Load a saved model with its experiment.

    Raises:
        CheckpointError: damaged files, or files without the config of the training.
        ConfigError: an invalid config or override.
    """
    model: Any = read_folder(folder)
    names = list(model.class_names or ())
    decided = {key: model.built_as[key] for key in _DECIDED if names and key in model.built_as}
    return Restored(_experiment(folder, model.training_record, config, overrides), names, decided, model)


def saved_config(folder: Path, config: str | None, overrides: list[str]) -> Experiment:
    """Read the experiment of a saved model without its weights. Errors are those of `restore_saved`."""
    try:
        content = read_json(folder / CONFIG)
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG} cannot be read: {error}") from None
    return _experiment(folder, content.get("training") if isinstance(content, dict) else None, config, overrides)


def _experiment(folder: Path, record: Any, config: str | None, overrides: list[str]) -> Experiment:
    content = record.get("config") if isinstance(record, dict) else None
    if config:
        return load_experiment(config, overrides)
    if not isinstance(content, dict):
        raise CheckpointError(f"{folder / CONFIG} lacks the config of its training; give --config CONFIG.yaml")
    return resolve(apply_overrides({"output": "runs/show"} | content, overrides))
