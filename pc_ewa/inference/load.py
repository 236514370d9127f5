"""Loading of a trained model from a checkpoint, a run, a saved folder or a repository of the Hub."""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

from pc_ewa.bundled import bundled_models
from pc_ewa.data import DATASETS, own_files
from pc_ewa.data.formats.readers import EXTENSIONS, PREPARED
from pc_ewa.errors import CheckpointError, ConfigError, Error
from pc_ewa.ewa import has_gate
from pc_ewa.inference.folder import CONFIG, check_names, checked_parts, read_folder
from pc_ewa.inference.hub import download
from pc_ewa.models.base import PointModel
from pc_ewa.trackers import TRACKERS
from pc_ewa.train.distributed import choose_device
from pc_ewa.train.restore import Restored, restore
from pc_ewa.train.run_folder import RunFolder, checkpoint_of

Precision = Literal["fp32", "bf16"]

# Keys of a config that hold only on one machine, such as paths. A model card does not have them.
_NOT_RECORDED = ("output", "device", "init_from", "tokenizer", *TRACKERS)
# A name with one of these endings is never looked up on the Hub. "owner/vit-1.5", whose suffix is ".5", is.
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
    """Load a trained model in evaluation mode, ready to predict. Mixtures of experts are merged.

    Args:
        source: a run folder; a checkpoint of pc-ewa, merged or not, as .pt or .safetensors; a folder that
            `save_pretrained` wrote; "owner/name" of the Hugging Face Hub; an official file of Point-MAE or Point-BERT,
            with `config`; or "furniture", which comes with the package.
        config: the experiment, as a YAML file or the name of a bundled one, for files without a config.
        class_names: the classes, for files without class names. If None, they come from the dataset of the config,
            which is needed only if its classes are not published.
        device: a device such as "cuda:1". None means a GPU if there is one.
        precision: "bf16" for autocast, or "fp32". None means that of the run.

    Returns:
        The network, with the official keys, and with `class_names`, `preprocessing` and `predict`. A gated model keeps
        its gates.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it does not fit its config.
        ConfigError: a config or argument is wrong.

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
    """Load a model that `save_pretrained` wrote, in evaluation mode. Every weight must fit.

    Args:
        source: the folder, "owner/name" of the Hugging Face Hub, or "furniture".
        revision: a branch, tag or commit on the Hub. None means the newest.
        device: a device such as "cuda:1". None means a GPU if there is one.

    Raises:
        CheckpointError: there is no such folder, or its files are damaged or do not fit each other.

    Example:
        >>> model = pc_ewa.from_pretrained("furniture", device="cpu")
        >>> len(model.class_names), model.preprocessing.num_points
        (18, 1024)
    """
    path = Path(os.path.expanduser(source))
    if os.path.exists(path) and not os.path.isfile(path / CONFIG):
        raise CheckpointError(f"{path} has no {CONFIG}, so save_pretrained did not write it; use load_model for it")
    place = download(str(source), revision) if revision is not None and not os.path.exists(path) else find(source)
    return read_folder(place).to(choose_device(device or "auto"))


def find(source: str | Path) -> Path:
    """Return the saved folder or the checkpoint file for a name.

    Raises:
        CheckpointError: there is none.
    """
    # os.path takes every name. pathlib raises if a name is too long, or begins with "~" and an unknown user.
    path, name = Path(os.path.expanduser(source)), str(source)
    if os.path.isfile(path) and path.suffix.lower() in (*EXTENSIONS, *PREPARED):
        raise CheckpointError(f"{path} holds shapes, not a model; the model comes first")
    if os.path.isfile(path) or os.path.isfile(path / CONFIG):
        return path
    checkpoint = checkpoint_of(path)
    if checkpoint != path:
        return checkpoint
    if name in bundled_models():  # before other folders: one of that name may hold scans
        return bundled_models()[name]
    if os.path.isdir(path):
        raise CheckpointError(
            f"{path} has neither checkpoints/{RunFolder(path).merged('last').name} of a run nor {CONFIG}"
        )
    # "runs/typo", where there is a folder runs, is a path, and not a repository of somebody called "runs".
    may_be_on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not os.path.isdir(path.parent)
    if may_be_on_hub and path.suffix.lower() not in _FILES:
        return download(name)
    raise CheckpointError(
        f"{name} is not a file or a folder; give a checkpoint, a run folder, a folder of save_pretrained, owner/name "
        f"of the Hub, or {', '.join(bundled_models())}"
    )


def refuse_for_folder(folder: Path, config: str | None, class_names: Sequence[str] | None) -> None:
    """Raise ConfigError if a config or class names are given for a saved folder, which has both."""
    if config is not None or class_names is not None:
        raise ConfigError(f"config and class_names are for files without them; {folder} has its own {CONFIG}")


def _of_checkpoint(path: Path, config: str | None, class_names: Sequence[str] | None) -> PointModel:
    restored = restore(path, config, class_names=class_names)
    model: Any = restored.model
    if not has_gate(model):
        restored.merge()
    if not restored.clouds and class_names is None and restored.experiment.data.name != own_files.NAME:
        with suppress(Error):  # a file of an earlier version; the data has the rest, if it is still there
            restored.ask_data()
    model.preprocessing, model.precision = restored.preprocessing, restored.experiment.train.precision
    check_names(path, model, restored.class_names or None)
    model.class_names = tuple(restored.class_names) or None
    parts_of = restored.clouds.get("parts_of") or _published_parts(restored.class_names)
    model.parts_of = checked_parts(path, parts_of, model)
    model.training_record, model.notes = _record(restored, path), tuple(restored.notes)
    return model


def _published_parts(class_names: Sequence[str]) -> list[list[int]] | None:
    """Return the parts of each class, if a dataset publishes them for exactly these classes. None if none does."""
    published = (dataset.parts for dataset in DATASETS.values() if dataset.parts)
    return next(([*map(list, parts.values())] for parts in published if [*parts] == [*class_names]), None)


def _record(restored: Restored, path: Path) -> dict[str, Any]:
    """Return the record of the training for a model card, without paths of this machine."""
    experiment = restored.experiment
    dataset = DATASETS[experiment.data.name]
    content = experiment.model_dump(mode="json", exclude={*_NOT_RECORDED})
    content["data"] = {key: value for key, value in content["data"].items() if key not in ("root", "path")}
    data = {"name": dataset.name, "title": dataset.title, "licence": dataset.licence}
    return {"config": content, "data": data, "metrics": _metrics(path)}


def _metrics(path: Path) -> dict[str, Any]:
    """Return the test metrics of a merged file from the summary of its run. Empty if it is not in a run folder."""
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
    except Error:  # a damaged summary must not prevent loading sound weights
        return {}
