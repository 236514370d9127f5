"""A trained model as a folder: config.json, model.safetensors with the official keys, and a model card README.md."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from pc_ewa.errors import CheckpointError, ConfigError
from pc_ewa.ewa import expert_layers, has_gate
from pc_ewa.files import read_json, write_text, write_whole
from pc_ewa.inference.card import model_card
from pc_ewa.models import create_model
from pc_ewa.models.base import PointModel, Preprocessing
from pc_ewa.models.checkpoints.bounds import no_larger_than, refuse_depth
from pc_ewa.models.checkpoints.read import check_finite, read_weights
from pc_ewa.package import version
from pc_ewa.text import doubled
from pc_ewa.validation import check_arguments

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
_FORMAT = 1  # version of config.json, to be raised when older code cannot read it
# The argument with the number of classes of a model, by its task.
_COUNTS = {"classify": "num_classes", "segment": "num_categories"}


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    metrics: Mapping[str, Any] | None = None,
    licence: str | None = None,
    notes: str = "",
    repo: str | None = None,
) -> Path:
    """Write a model to a folder that `from_pretrained`, `load_model` and the Hub can read.

    Args:
        model: a dense or merged model that was built by `create_model`, or loaded.
        folder: the folder, created if it does not exist. Only the three files of a saved model are replaced in it.
        metrics: metrics for the card and config.json. None uses those of the run.
        licence: licence of the weights, in the notation of the Hub, such as "apache-2.0". None uses that of the run.
        notes: Markdown for the end of the card: limits, credits, how it was made.
        repo: "owner/name" on the Hub, for the code in the card. None uses the name of the folder.

    Returns:
        The folder.

    Raises:
        CheckpointError: the model has experts, was not built by `create_model`, or could not be loaded again because
            its weights are not finite or it has not one name for each class.
        ConfigError: JSON cannot hold the metrics.
        WriteError: the folder cannot be written.

    Example:
        >>> model = pc_ewa.load_model("furniture", device="cpu")
        >>> folder = model.save_pretrained("saved")
        >>> torch.equal(pc_ewa.from_pretrained(folder, device="cpu").norm.weight, model.norm.weight)
        True
    """
    from safetensors.torch import save

    model, folder = getattr(model, "_orig_mod", model), Path(os.path.expanduser(folder))  # of torch.compile
    _check_plain(model)
    about = _about(model, metrics, licence)
    check_names("the model", model, about["class_names"])
    weights = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    check_finite(weights, "the model")
    content = save(weights, {"format": "pt"})
    config, card = _texts(about, repo or folder.resolve().name, notes)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be made: {error.strerror}; choose another folder") from None
    # Remove the config first and write it last. A folder without it is not a saved model, so that a crash in between
    # cannot leave old weights with a new config.
    with suppress(OSError):  # if the folder cannot be changed, the next write raises with the reason
        (folder / CONFIG).unlink(missing_ok=True)
    write_whole(folder / WEIGHTS, lambda file: file.write(content))
    write_text(folder / CARD, card)
    write_text(folder / CONFIG, config)
    return folder


def read_folder(folder: Path) -> PointModel:
    """Build the model of a saved folder, and load all of its weights.

    Raises:
        CheckpointError: a file is missing, damaged, or does not fit the others.
    """
    about = _read_config(folder / CONFIG)
    built_as, names, weights = dict(about["model"]), about.get("class_names"), read_weights(folder / WEIGHTS)
    check_finite(weights, folder / WEIGHTS)
    refuse_depth(built_as, len(weights), folder / CONFIG)
    try:
        with no_larger_than(weights.values(), folder / CONFIG):
            model: Any = create_model(str(built_as.pop("name", None)), **built_as)
        wanted = about.get("preprocessing")
        preprocessing = None if wanted is None else Preprocessing(**check_arguments("it", Preprocessing, wanted))
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG} does not describe a model: {error}") from None
    check_names(folder / CONFIG, model, names)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split(":", 1)[-1].split())[:200]
        raise CheckpointError(f"{folder / WEIGHTS} does not fit {CONFIG}: {reason}") from None
    model.class_names = None if names is None else tuple(names)
    model.preprocessing, model.training_record = preprocessing, about.get("training")
    model.parts_of = checked_parts(folder / CONFIG, about.get("parts_of"), model)
    model.precision = about.get("precision", "fp32")
    return model.eval()


def checked_parts(path: Path, parts_of: Any, model: Any) -> tuple[tuple[int, ...], ...] | None:
    """Check the parts of each class of a segmenter that were read from a file, and return them.

    Raises:
        CheckpointError: they do not fit the model.
    """
    if parts_of is None:
        return None
    built_as = model.built_as
    fits = isinstance(parts_of, list) and len(parts_of) == built_as.get("num_categories")
    known = range(built_as.get("num_parts", 0))
    if not fits or not all(isinstance(row, list) and row and all(part in known for part in row) for row in parts_of):
        raise CheckpointError(f"{path} has parts_of {str(parts_of)[:60]}, which does not fit the model: damaged")
    return tuple(map(tuple, parts_of))


def _check_plain(model: nn.Module) -> None:
    if has_gate(model):
        raise CheckpointError(
            "the model has gated mixtures of experts, which no other code reads; keep its checkpoint, or train without "
            "a gate"
        )
    if expert_layers(model):
        count = len(expert_layers(model))
        raise CheckpointError(f"the model has {count} mixtures of experts; merge it first: pc_ewa.merge_experts(model)")
    if not getattr(model, "built_as", None):
        raise CheckpointError(f"this {type(model).__name__} was not built by pc_ewa.create_model; build it so")


def _about(model: Any, metrics: Mapping[str, Any] | None, licence: str | None) -> dict[str, Any]:
    """Return the content of config.json, in plain types."""
    record = getattr(model, "training_record", None)
    if metrics is not None:
        record = {**(record or {}), "metrics": dict(metrics)}
    if licence is not None:
        record = {**(record or {}), "licence": licence}
    names, preprocessing = getattr(model, "class_names", None), getattr(model, "preprocessing", None)
    if not isinstance(preprocessing, Preprocessing | None):
        raise ConfigError(f"model.preprocessing is a {type(preprocessing).__name__}; set a Preprocessing")
    return {
        "format": _FORMAT,
        "pc_ewa": version(),
        "model": dict(model.built_as),
        "class_names": None if names is None else list(names),
        "preprocessing": None if preprocessing is None else asdict(preprocessing),
        "parts_of": getattr(model, "parts_of", None),
        "precision": getattr(model, "precision", "fp32"),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training": None if record is None else dict(record),
    }


def _texts(about: Mapping[str, Any], name: str, notes: str) -> tuple[str, str]:
    """Return the texts of config.json and of the card. Numbers of numpy and torch become plain ones.

    Raises:
        ConfigError: JSON cannot hold a value.
    """
    try:
        text = json.dumps(about, indent=2, ensure_ascii=False, default=lambda value: value.item())
        card = model_card(json.loads(text), name, notes)
        (text + card).encode()  # before any file is replaced, because a text may hold surrogates that UTF-8 refuses
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{CONFIG} cannot hold this: {error}; give metrics that are numbers or text") from None
    return text + "\n", card


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except ValueError as error:
        raise CheckpointError(
            f"{path} cannot be read: {' '.join(str(error).split())[:120]}; get a fresh copy"
        ) from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise CheckpointError(f"{path} has no section model: pc_ewa.save_pretrained did not write it")
    if not isinstance(content.get("preprocessing"), dict | None):
        raise CheckpointError(f"{path} has preprocessing {str(content['preprocessing'])[:60]}; expected a section")
    if not isinstance(training := content.get("training"), dict | None):
        raise CheckpointError(f"{path} has training {str(training)[:60]}; expected a section")
    for key in ("config", "data", "metrics"):  # the sections that the card and `pc-ewa export` read
        if not isinstance(part := (training or {}).get(key), dict | None):
            raise CheckpointError(f"{path} has training.{key} {str(part)[:60]}; expected a section")
    data = (training or {}).get("data")
    if data and not all(isinstance(data.get(key), str) for key in ("title", "licence")):
        raise CheckpointError(f"{path} has training.data {str(data)[:60]}; expected a title and a licence")
    if content.get("format") != _FORMAT:
        found = content.get("format")
        raise CheckpointError(f"{path} has format {found!r}, and this version reads {_FORMAT}; update pc-ewa")
    if content.get("precision", "fp32") not in ("fp32", "bf16"):
        raise CheckpointError(f"{path} has precision {content['precision']!r}; choose from fp32, bf16")
    return content


def check_names(path: str | Path, model: Any, names: Any) -> None:
    """Check that there is one class name for each class of a model.

    Raises:
        CheckpointError: there is not, or a name occurs twice.
    """
    if names is None:
        return
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{path} has class_names {str(names)[:60]!r}; expected a list of names")
    count = model.built_as.get(_COUNTS.get(getattr(model, "task", ""), ""), len(names))
    if count != len(names):
        raise CheckpointError(f"{path} has {len(names)} class_names for {count} classes")
    if (twice := doubled(names)) is not None:
        raise CheckpointError(f"{path} names {twice!r} twice among its classes; give each class a different name")
