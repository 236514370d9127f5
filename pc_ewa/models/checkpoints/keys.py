"""Renaming of the state_dict keys of checkpoint files to those of a model, and cutting of heads to its classes."""

from collections.abc import Iterable

from torch import Tensor, nn

# Prefixes of the networks in official pre-training files: the backbones, and Point-BERT's tokenizer.
_PREFIXES = ("", "MAE_encoder.", "transformer_q.", "dvae.")
# The step counter of a batch norm, which is not used with a fixed momentum. Files of old versions of torch, and of
# exporters, do not have it.
COUNTER = ".num_batches_tracked"
# Prefixes of the head of a model without an attribute `head_keys`, such as a user's model.
_HEAD_KEYS = ("cls_head", "head", "cls_token", "cls_pos")


def rename_keys(state: dict[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """Rename the weights of a file to the keys of a model. Weights without a place in the model keep their key.

    The wrappers `module.`, `_orig_mod.` and `base_model.` are dropped, and any other that all keys begin with, such as
    `model.` of a trainer. Then one prefix is dropped, the one under which most keys of the model are found. So a
    pre-training file fills its model completely, and the backbone of classifiers and segmenters.

    Args:
        state: the weights of the file.
        wanted: the keys of the model's state_dict.
    """
    wanted = set(wanted)
    state = _drop_common(drop_wrappers(state), {key.split(".")[0] for key in wanted})
    prefix = max(_PREFIXES, key=lambda prefix: sum(prefix + key in state for key in wanted))
    names = {key: key.removeprefix(prefix) for key in state}
    # transformer_q.cls_head is Point-BERT's contrastive head. Without its prefix it would look like a classifier's.
    names = {k: k if name.startswith("cls_head.") and name not in wanted else name for k, name in names.items()}
    # A key under the prefix wins over the same key without it.
    under = {names[key] for key in state if names[key] != key}
    return {names[key]: value for key, value in state.items() if names[key] != key or key not in under}


def fit_head(state: dict[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], str | None]:
    """Cut the last layer of a classifier's head to the classes of the model, if the file has more outputs.

    The released ScanObjectNN files of Point-BERT have 40 outputs for 15 classes.

    Args:
        state: weights under the model's keys (`rename_keys`).
        model: the model they are for.

    Returns:
        The weights, and a note about the cut. The note is None if nothing was cut. A head that differs in another way
        is left as it is, and strict loading refuses it.
    """
    wanted = model.state_dict()
    head = [key for key in wanted if key.startswith(head_keys(model))]
    if getattr(model, "task", None) != "classify" or not head:
        return state, None
    layer = head[-1].rpartition(".")[0]
    last = [key for key in head if key.startswith(f"{layer}.")]
    if not all(key in state and state[key].shape[1:] == wanted[key].shape[1:] for key in last):
        return state, None
    (outputs, *others), classes = {len(state[key]) for key in last}, len(wanted[last[0]])
    if others or outputs <= classes:
        return state, None
    note = f"the head has {outputs} outputs, the data {classes} classes: the first {classes} are used, "
    return state | {key: state[key][:classes] for key in last}, note + "as in the official ScanObjectNN files"


def head_keys(model: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of the keys that a pre-trained file need not have."""
    keys: tuple[str, ...] = getattr(model, "head_keys", _HEAD_KEYS)
    return keys


def drop_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the names of wrappers from the keys: of DataParallel, torch.compile and the official code."""
    return {_unwrapped(key).removeprefix("base_model."): value for key, value in state.items()}


def _unwrapped(key: str) -> str:
    return ".".join(name for name in key.split(".") if name not in ("module", "_orig_mod"))


def _drop_common(state: dict[str, Tensor], known: set[str]) -> dict[str, Tensor]:
    """Drop the name that all keys begin with, and then the next, unless the model has it."""
    while state:
        first = {key.partition(".")[0] if "." in key else "" for key in state}
        if len(first) > 1 or first & {"", *known}:
            break
        state = {key.partition(".")[2]: value for key, value in state.items()}
    return state
