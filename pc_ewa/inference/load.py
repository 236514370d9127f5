"""A trained model by the name of whatever holds it: a checkpoint, a run, a saved folder, a repository of the Hub."""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

from pc_ewa.bundled import bundled_models
from pc_ewa.data import DATASETS, own_files
from pc_ewa.data.formats.readers import EXTENSIONS
from pc_ewa.errors import CheckpointError, ConfigError, Error
from pc_ewa.ewa import has_gate
from pc_ewa.inference.folder import CONFIG, check_names, checked_parts, read_folder
from pc_ewa.inference.hub import download
from pc_ewa.models.base import PointModel
from pc_ewa.trackers import TRACKERS
from pc_ewa.train.distributed import choose_device
from pc_ewa.train.restore import Restored, restore
from pc_ewa.train.run_folder import RunFolder

Precision = Literal["fp32", "bf16"]

# Where a run or its data lay on one machine, and what another may do otherwise.
_NOT_RECORDED = ("output", "device", "init_from", "tokenizer", *TRACKERS)
# Endings of files, whose names are never asked of the Hub; "owner/vit-1.5" is.
_FILES = (
    ".pt",
    ".pth",
    ".safetensors",
    ".onnx",
    ".pt2",
    ".h5",
    ".yaml",
    ".json",
    ".bin",
    ".ckpt",
    ".pkl",
    ".zip",
    *EXTENSIONS,
)


def load_model(
    source: str | Path,
    config: str | None = None,
    *,
    class_names: Sequence[str] | None = None,
    device: str | None = None,
    precision: Precision | None = None,
) -> PointModel:
    """Load a trained model, ready to predict, in evaluation mode; mixtures of experts are merged.

    Args:
        source: a run folder; a checkpoint of ours, merged or not, as .pt or .safetensors; a folder that
            `save_pretrained` wrote; "owner/name" of the Hugging Face Hub; an official file of Point-MAE or Point-BERT,
            with `config`; or "furniture", which comes with the package.
        config: the experiment, a YAML file or the name of a bundled one, for files that hold none.
        class_names: the classes, for files that do not name them; without them the dataset of the config is asked;
            where its classes are published it need not be there.
        device: such as "cuda:1"; None for a GPU if there is one.
        precision: "bf16" for autocast; None for that of the run.

    Returns:
        The network itself, with the official keys, and `class_names`, `preprocessing` and `predict`. A gated model
        keeps its gates.

    Raises:
        CheckpointError: nothing there, a damaged file, or one that does not fit.
        ConfigError: a config or argument that is wrong.

    Example:
        >>> model = pc_ewa.load_model("furniture", device="cpu")
        >>> model.predict(torch.rand(2, 1024, 3))[0].probabilities.shape
        torch.Size([18])
    """
    if precision not in (None, *get_args(Precision)):
        raise ConfigError(f"precision={precision!r}; choose from {', '.join(get_args(Precision))}")
    place = find(source)
    if place.is_dir():
        refuse_for_folder(place, config, class_names)
        model = read_folder(place)
    else:
        model = _of_checkpoint(place, config, class_names)
    if precision is not None:
        model.precision = precision
    return model.to(choose_device(device or "auto")).eval()


def from_pretrained(source: str | Path, *, revision: str | None = None, device: str | None = None) -> PointModel:
    """Load what `save_pretrained` wrote, every weight of it, in evaluation mode.

    Args:
        source: the folder, "owner/name" of the Hugging Face Hub, or "furniture".
        revision: a branch, tag or commit on the Hub; None for the newest.
        device: such as "cuda:1"; None for a GPU if there is one.

    Raises:
        CheckpointError: nothing there, files that are damaged, or that do not fit each other.
    """
    path = Path(os.path.expanduser(source))
    if os.path.exists(path) and not os.path.isfile(path / CONFIG):
        raise CheckpointError(f"{path} has no {CONFIG}, so save_pretrained did not write it; load_model reads the rest")
    place = download(str(source), revision) if revision is not None and not os.path.exists(path) else find(source)
    return read_folder(place).to(choose_device(device or "auto"))


def find(source: str | Path) -> Path:
    """Return the saved folder or the checkpoint file that a name stands for.

    Raises:
        CheckpointError: nothing there.
    """
    # os.path takes every name; pathlib raises where one is too long, or begins with the "~" of nobody.
    path, name = Path(os.path.expanduser(source)), str(source)
    if os.path.isfile(path) or os.path.isfile(path / CONFIG):
        return path
    run = RunFolder(path)
    for checkpoint in (run.merged("last"), run.checkpoints.last):
        if os.path.isfile(checkpoint):
            return checkpoint
    if name in bundled_models():  # a folder of that name may hold the scans
        return bundled_models()[name]
    if os.path.isdir(path):
        raise CheckpointError(f"{path} has neither checkpoints/{run.merged('last').name} of a run nor {CONFIG}")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and path.suffix.lower() not in _FILES:
        return download(name)
    raise CheckpointError(
        f"{name} is not a file or a folder; give a checkpoint, a run folder, a folder of save_pretrained, owner/name "
        f"of the Hub, or {', '.join(bundled_models())}"
    )


def refuse_for_folder(folder: Path, config: str | None, class_names: Sequence[str] | None) -> None:
    """Raise ConfigError where a saved folder, which knows both, is told either."""
    if config is not None or class_names is not None:
        raise ConfigError(f"config and class_names are for files without them; {folder} has its own {CONFIG}")


def _of_checkpoint(path: Path, config: str | None, class_names: Sequence[str] | None) -> PointModel:
    restored = restore(path, config, class_names=class_names)
    model: Any = restored.model
    if not has_gate(model):
        restored.merge()
    if not restored.clouds and class_names is None and restored.experiment.data.name != own_files.NAME:
        with suppress(Error):  # a file of an earlier version: the data knows, if it is still there
            restored.ask_data()
    model.preprocessing, model.precision = restored.preprocessing, restored.experiment.train.precision
    check_names(path, model, restored.class_names or None)
    model.class_names = tuple(restored.class_names) or None
    parts_of = restored.clouds.get("parts_of") or _published_parts(restored.class_names)
    model.parts_of = checked_parts(path, parts_of, model)
    model.training_record, model.notes = _record(restored, path), tuple(restored.notes)
    return model


def _published_parts(class_names: Sequence[str]) -> list[list[int]] | None:
    """Return the parts of each class where a dataset publishes them for these classes."""
    published = (dataset.parts for dataset in DATASETS.values() if dataset.parts)
    return next(([*map(list, parts.values())] for parts in published if [*parts] == [*class_names]), None)


def _record(restored: Restored, path: Path) -> dict[str, Any]:
    """Collect what a model card says of the training, without paths of this machine."""
    experiment = restored.experiment
    dataset = DATASETS[experiment.data.name]
    content = experiment.model_dump(mode="json", exclude={*_NOT_RECORDED})
    content["data"] = {key: value for key, value in content["data"].items() if key not in ("root", "path")}
    data = {"name": dataset.name, "title": dataset.title, "licence": dataset.licence}
    return {"config": content, "data": data, "metrics": _metrics(path)}


def _metrics(path: Path) -> dict[str, Any]:
    """Find the test metrics of a merged file in the summary of its run; none if it lies elsewhere."""
    run = RunFolder(path.parent.parent)
    for which, ending in (("last", "_merged"), ("best", "_merged_best")):
        if path == run.merged(which):  # type: ignore[arg-type]
            summary = _summary(run)
            found = {key.removesuffix(ending): summary[key] for key in summary if re.fullmatch(f"test_.+{ending}", key)}
            return {**found, **{key: summary[key] for key in ("test_samples", "seed") if key in summary}}
    return {}


def _summary(run: RunFolder) -> Mapping[str, Any]:
    try:
        return run.summary() or {}
    except Error:  # the weights are sound, whatever became of it
        return {}
