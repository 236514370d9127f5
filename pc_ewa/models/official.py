"""Weights of Point-MAE, Point-BERT and ours into a model: key rules, and a report of what matched.

What reads and writes the files themselves (files.py, export.py) is imported from here too.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from pc_ewa.errors import CheckpointError
from pc_ewa.models.export import WeightsFormat, save_weights
from pc_ewa.models.files import read_checkpoint, read_content, read_weights

__all__ = [
    "LoadReport",
    "WeightsFormat",
    "fit_head",
    "load_pretrained",
    "read_checkpoint",
    "read_content",
    "read_weights",
    "rename_keys",
    "save_weights",
]

# Under these the official pre-training files keep a model of its own: the backbones, and Point-BERT's tokenizer.
_PREFIXES = ("", "MAE_encoder.", "transformer_q.", "dvae.")
# What a pre-trained file need not have of a model that does not say so itself, in an attribute `head_keys`.
_HEAD_KEYS = ("cls_head", "head", "cls_token", "cls_pos")
# What only the mixtures of `GatedFFN` have, beside their experts.
_GATE = ".gate.weight"
# The first of these that a key begins with tells whose file it is, and which.
_KINDS = {
    "transformer_q.": ("Point-BERT", "a Point-BERT pre-training file"),
    "MAE_encoder.": ("Point-MAE", "a Point-MAE pre-training file"),
    "codebook": ("dVAE", "a file of Point-BERT's dVAE"),
    "propagation_2.": ("Point-BERT", "a Point-BERT part segmentation file"),
    "label_conv.": ("Point-MAE", "a Point-MAE part segmentation file"),
    "reduce_dim.": ("Point-BERT", "a Point-BERT classifier"),
    "cls_head_finetune.": ("Point-MAE", "a Point-MAE classifier"),
}


class LoadReport(NamedTuple):
    """Keys of the model that were loaded and that were missing, and keys of the file that had no place."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        """A table of the numbers of tensors, one row a part of the model or of the file."""
        counts = [Counter(key.split(".")[0] for key in keys) for keys in self]
        parts = list(dict.fromkeys(part for count in counts for part in count))
        rows = [[part, *(str(count[part] or "-") for count in counts)] for part in parts]
        rows.append(["total", *(str(count.total()) for count in counts)])
        width = max(len(row[0]) for row in rows)
        lines = ["{:<{}}  {:>6}  {:>7}  {:>10}".format("part", width, *self._fields)]
        lines += ["{:<{}}  {:>6}  {:>7}  {:>10}".format(row[0], width, *row[1:]) for row in rows]
        return "\n".join(lines)

    @property
    def line(self) -> str:
        """One line a reader can check a fine-tuning start by."""
        parts = [f"{len(self.loaded)} tensors loaded"]
        for title, keys in (("missing", self.missing), ("unexpected", self.unexpected)):
            if keys:
                groups = sorted({key.split(".")[0] for key in keys})
                parts.append(f"{len(keys)} {title} ({', '.join(groups)})")
        return ", ".join(parts)


def load_pretrained(path: str | Path, model: nn.Module) -> LoadReport:
    """Load the weights of a file into a model: official Point-MAE or Point-BERT, ours, or safetensors.

    A pre-training file fills its own model whole, and of classifiers and segmenters the backbone; one of Point-BERT
    also has the dVAE's weights. Heads and tokens that the file lacks keep their initialisation, as fine-tuning wants; a
    head for another number of classes is left out. Nothing is ever unpickled (`weights_only=True`).

    Returns:
        What was loaded, missing and unexpected: a table by `str`, one line by `.line`.

    Raises:
        CheckpointError: no such file, no weights in it, or a backbone that does not fit the model; the model is then
            as it was.
    """
    file = read_weights(path)
    wanted = model.state_dict()
    found = rename_keys(file, wanted)
    fitting = {key: found[key] for key in wanted if key in found and found[key].shape == wanted[key].shape}
    problem = _misfit(found, wanted, _head_keys(model)) or ("" if fitting else "it has none of the model's tensors")
    if problem:
        raise CheckpointError(f"{path} does not fit {type(model).__name__}: {problem}{_hint(file, wanted)}")
    model.load_state_dict(fitting, strict=False)
    missing = tuple(key for key in wanted if key not in fitting)
    return LoadReport(tuple(fitting), missing, tuple(key for key in found if key not in fitting))


def rename_keys(state: dict[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """Give the weights of a file the names that a model has for them; those that have no place in it keep their own.

    `module.` and `base_model.` go first. Then a pre-training file gives what is under the prefix where most of the
    model's keys are: all of it to the pre-training model, the backbone to classifiers and segmenters.

    Args:
        state: the weights of the file.
        wanted: the keys of the model's state_dict.
    """
    wanted, state = set(wanted), _without_wrappers(state)
    prefix = max(_PREFIXES, key=lambda prefix: sum(prefix + key in state for key in wanted))
    names = {key: key.removeprefix(prefix) for key in state}
    # The contrastive head in Point-BERT's query transformer is no part of the backbone.
    names = {k: k if name.startswith("cls_head.") and name not in wanted else name for k, name in names.items()}
    under = {names[key] for key in state if names[key] != key}
    return {names[key]: value for key, value in state.items() if names[key] != key or key not in under}


def fit_head(state: dict[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], str | None]:
    """Cut the last layer of a classifier's head to the classes that the model has, where the file has more.

    The released ScanObjectNN files of Point-BERT have 40 outputs for 15 classes.

    Args:
        state: weights under the model's names (`rename_keys`).
        model: the model they are for.

    Returns:
        The weights, and a note of what was cut, if anything was. A head with fewer outputs, or one that differs
        otherwise, stays as it is: strict loading then refuses it.
    """
    wanted = model.state_dict()
    head = [key for key in wanted if key.startswith(_head_keys(model))]
    if getattr(model, "task", None) != "classify" or not head:
        return state, None
    layer = head[-1].rpartition(".")[0]
    last = [key for key in head if key.startswith(f"{layer}.")]
    if not all(key in state and state[key].shape[1:] == wanted[key].shape[1:] for key in last):
        return state, None
    (there, *others), classes = {len(state[key]) for key in last}, len(wanted[last[0]])
    if others or there <= classes:
        return state, None
    note = f"the head has {there} outputs, the data {classes} classes: the first {classes} are used, "
    return state | {key: state[key][:classes] for key in last}, note + "as in the official ScanObjectNN files"


def _head_keys(model: nn.Module) -> tuple[str, ...]:
    keys: tuple[str, ...] = getattr(model, "head_keys", _HEAD_KEYS)
    return keys


def _without_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.replace("module.", "").removeprefix("base_model."): value for key, value in state.items()}


def _misfit(found: dict[str, Tensor], wanted: dict[str, Tensor], heads: tuple[str, ...]) -> str | None:
    """Say why weights do not fit a model, if they do not: heads may be missing or differ, nothing else may."""
    backbone = [key for key in wanted if not key.startswith(heads)]
    misfits = [key for key in backbone if key in found and found[key].shape != wanted[key].shape]
    absent = [key for key in backbone if key not in found]
    # A file of more blocks than the model has fits in all of these, and is another architecture all the same; so is
    # one of Point-BERT, whose patch encoder has a projection behind it.
    parts = {*(key.split(".")[0] for key in wanted), "reduce_dim"}
    surplus = [k for k in found if k not in wanted and not k.startswith(heads) and k.split(".")[0] in parts]
    if not (misfits or absent or surplus):
        return None
    if any(key.endswith(_GATE) and key not in wanted for key in found):
        return "it holds gated mixtures of experts, which do not merge; start from a file made without a gate"
    if any(".experts." in key and key not in wanted for key in found):
        return "it holds mixtures of experts; merge it first: python tools/merge_experts.py CHECKPOINT -o OUT"
    if any(".experts." in key for key in absent):
        return "the model has mixtures of experts, the file has none; load_pretrained() first, upcycle() then"
    if misfits:
        key = misfits[0]
        here, there = tuple(wanted[key].shape), tuple(found[key].shape)
        return f"{len(misfits)} tensors differ in shape, such as {key}: {there} in the file, {here} in the model"
    if absent:
        return f"{len(absent)} tensors of the {'backbone' if heads else 'model'} are not in it, such as {absent[0]}"
    return f"{len(surplus)} of its tensors have no place in the model, such as {surplus[0]}"


def _hint(file: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    """Name what the file seems to be, where that is something else than the model."""
    file = _without_wrappers(file)
    there, here = _kind(file), _kind(wanted)
    nothing_fits = not any(key in wanted for key in rename_keys(file, wanted))
    return f"; it looks like {there[1]}" if there and (nothing_fits or not here or there[0] != here[0]) else ""


def _kind(keys: Iterable[str]) -> tuple[str, str] | None:
    keys = list(keys)
    return next((kind for start, kind in _KINDS.items() if any(key.startswith(start) for key in keys)), None)
