"""Load a checkpoint file into a model, and report which tensors matched."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from pc_ewa.errors import CheckpointError
from pc_ewa.models.checkpoints.keys import COUNTER, drop_wrappers, head_keys, rename_keys
from pc_ewa.models.checkpoints.read import check_finite, read_weights

# Only gated mixtures of experts (`GatedFFN`) have this weight.
_GATE = ".gate.weight"
# The family and title of a file by the prefix of one of its keys. The first match decides, so the order matters:
# classifiers of both families have "cls_head_finetune.", and only those of Point-BERT also have "reduce_dim.".
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
    """Report of loading: keys of the model that were loaded or missing, and keys of the file that it does not have.

    Example:
        >>> report = pc_ewa.models.LoadReport(loaded=("norm.weight",), missing=("cls_token",), unexpected=())
        >>> report.line
        '1 tensors loaded, 1 missing (cls_token)'
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        """Count the tensors in a table, one row for each module at the top of the model or of the file."""
        counts = [Counter(key.split(".")[0] for key in keys) for keys in self]
        modules = list(dict.fromkeys(module for count in counts for module in count))
        rows = [[module, *(str(count[module] or "-") for count in counts)] for module in modules]
        rows.append(["total", *(str(count.total()) for count in counts)])
        width = max(len(row[0]) for row in rows)
        return "\n".join(
            "{:<{}}  {:>6}  {:>7}  {:>10}".format(title, width, *cells)
            for title, *cells in (["module", *self._fields], *rows)
        )

    @property
    def line(self) -> str:
        """Return the report in one line."""
        counts = [f"{len(self.loaded)} tensors loaded"]
        for title, keys in (("missing", self.missing), ("unexpected", self.unexpected)):
            if keys:
                modules = sorted({key.split(".")[0] for key in keys})
                counts.append(f"{len(keys)} {title} ({', '.join(modules)})")
        return ", ".join(counts)


def load_pretrained(path: str | Path, model: nn.Module) -> LoadReport:
    """Load the weights of a file into a model: official Point-MAE or Point-BERT, ours, or safetensors.

    A pre-training file fills its model completely, and the backbone of classifiers and segmenters. A Point-BERT file
    also fills a dVAE. Heads and tokens that are not in the file keep their initialisation, as fine-tuning needs. A head
    for another number of classes is not loaded. Files are read with `weights_only=True`, so no code in them runs.

    Returns:
        The keys loaded, missing and unexpected. `str` makes a table of them, and `.line` is one line.

    Raises:
        CheckpointError: there is no such file, it has no weights, its backbone does not fit, or its weights hold NaN or
            inf. The model is then unchanged.

    Example:
        >>> torch.save(pc_ewa.create_model("point_mae", depth=2).state_dict(), "pretrain.pth")
        >>> report = pc_ewa.load_pretrained("pretrain.pth", pc_ewa.create_model("point_mae_classifier", depth=2))
        >>> len(report.loaded), len(report.missing)  # the head, the class token and its position are missing
        (46, 18)
    """
    file = read_weights(path)
    wanted = model.state_dict()
    found = rename_keys(file, wanted)
    fitting = {key: found[key] for key in wanted if key in found and found[key].shape == wanted[key].shape}
    problem = _misfit(found, wanted, head_keys(model)) or ("" if fitting else "it has none of the model's tensors")
    if problem:
        raise CheckpointError(f"{path} does not fit {type(model).__name__}: {problem}{_hint(file, wanted)}")
    check_finite(fitting, path)
    # `strict=False` cannot hide anything: _misfit has refused every difference outside of the heads, and all keys of
    # `fitting` are keys of the model.
    model.load_state_dict(fitting, strict=False)
    missing = tuple(key for key in wanted if key not in fitting)
    return LoadReport(tuple(fitting), missing, tuple(key for key in found if key not in fitting))


def _misfit(found: dict[str, Tensor], wanted: dict[str, Tensor], heads: tuple[str, ...]) -> str | None:
    """Return the reason why weights do not fit a model. None means that they fit.

    Only heads may be missing or differ.
    """
    backbone = [key for key in wanted if not key.startswith(heads)]
    misfits = [key for key in backbone if key in found and found[key].shape != wanted[key].shape]
    absent = [key for key in backbone if key not in found and not key.endswith(COUNTER)]
    # Tensors of the file without a place in the model also show a misfit. The first blocks of a deeper model would fit
    # a shallower one, but it is another architecture. So is a Point-BERT file with the widths of Point-MAE, because a
    # projection, `reduce_dim`, follows its patch encoder.
    modules = {*(key.split(".")[0] for key in wanted), "reduce_dim"}
    surplus = [k for k in found if k not in wanted and not k.startswith(heads) and k.split(".")[0] in modules]
    if not (misfits or absent or surplus):
        return None
    if any(key.endswith(_GATE) and key not in wanted for key in found):
        return "it holds gated mixtures of experts, which do not merge; start from a file made without a gate"
    if any(".experts." in key and key not in wanted for key in found):
        return "it holds mixtures of experts; merge it first: pc-ewa merge CHECKPOINT -o OUT"
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
    """Return a hint with the kind of the file, if it differs from the kind of the model."""
    file = drop_wrappers(file)
    there, here = _kind(file), _kind(wanted)
    nothing_fits = not any(key in wanted for key in rename_keys(file, wanted))
    return f"; it looks like {there[1]}" if there and (nothing_fits or not here or there[0] != here[0]) else ""


def _kind(keys: Iterable[str]) -> tuple[str, str] | None:
    keys = list(keys)
    return next((kind for start, kind in _KINDS.items() if any(key.startswith(start) for key in keys)), None)
