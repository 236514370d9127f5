"""Recognition of FFNs by their layers, and of layers that experts cannot have."""

from collections import Counter
from types import FunctionType
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from pc_ewa.ewa.sites import get_part

LOOKED_FOR = (
    "a module of two nn.Linear layers C -> H -> C (ours, timm Mlp, torchvision MLPBlock, transformers ViTMLP), or one "
    "gated by C -> 2H or twice C -> H (SwiGLU, GeGLU), or of 1x1 convolutions or Conv1D, with norms between; "
    "linear1 and linear2 (torch.nn.TransformerEncoderLayer); fc1, activation_fn, activation_dropout and fc2 (BART); "
    "ffn and ffn_output (ALBERT); pwconv1 and pwconv2 (ConvNeXt); intermediate and output.dense (older transformers)"
)
# Fewer features than this are coordinates or scores, such as the input of a position-bias MLP, not tokens.
MIN_FEATURES = 4
# Hosts that hold the parts of their FFN side by side: the parts in the order of computation, and the name of another
# module that such a host has.
_SPLIT_LAYOUTS = (
    (("linear1", "activation", "dropout", "linear2"), None),
    (("intermediate", "output.dense"), None),
    (("ffn", "activation", "ffn_output"), "attention"),
    (("fc1", "activation_fn", "activation_dropout", "fc2"), "self_attn"),
    (("pwconv1", "act", "grn", "pwconv2"), "dwconv"),
    (("pwconv1", "act", "pwconv2"), "dwconv"),
)
# A host with fc1 and fc2 but no attribute for the dropout between them may call F.dropout there. So this layout is used
# only for classes that are known to have none.
_SPLIT_LAYOUTS_OF = {"OPTDecoderLayer": (("fc1", "activation_fn", "fc2"), "self_attn")}
_TOKEN_MIXERS = ("mlp_tokens", "token_mixing", "token_mixer")


class _Map(NamedTuple):
    """Sizes of a layer that multiplies each token by a matrix."""

    inputs: int
    outputs: int


def is_built_as_ffn(module: nn.Module) -> bool:
    """Return True if the children of a module are the layers of an FFN, plain or gated.

    Other children may hold vectors, such as norms. `why_not_tokenwise` tests if the module maps token by token.
    """
    sizes, others = [], []
    for child in module.children():
        size = _map_of(child)
        (others.append(child) if size is None else sizes.append(size))
    if not _is_there_and_back(sizes, any_width=hasattr(module, "fc1")):
        return False
    own = module.parameters(recurse=False)
    return all(_is_vector(parameter) for parameter in own) and all(map(_holds_vectors, others))


def split_layout(module: nn.Module) -> tuple[str, ...] | None:
    """Return the names of the parts of an FFN that a module holds side by side. None means that it holds none."""
    known = _SPLIT_LAYOUTS_OF.get(type(module).__name__)
    layouts = (known, *_SPLIT_LAYOUTS) if known else _SPLIT_LAYOUTS
    return next((parts for parts, beside in layouts if _has_split_ffn(module, parts, beside)), None)


def why_no_expert(name: str, ffn: nn.Module) -> str | None:
    """Return a message about the layer of an FFN that experts cannot have. None means that there is no such layer."""
    if name.rpartition(".")[2] in _TOKEN_MIXERS:
        # As in MLP-Mixer: the module is an MLP, but its host transposes the input, so no test of the module shows it.
        return "its name is that of a token mixer"
    for part, layer in ffn.named_modules():
        where = f"its {part}" if part else "it"
        if isinstance(layer, _ConvNd) and any(size != 1 for size in layer.kernel_size):
            size = "x".join(map(str, layer.kernel_size))
            depthwise = "depthwise " if layer.groups == layer.in_channels > 1 else ""
            return f"{where} is a {size} {depthwise}convolution, which mixes neighbouring tokens"
        if isinstance(layer, _BatchNorm) and layer.track_running_stats:
            return f"{where} is a {type(layer).__name__}, whose running statistics experts would not share"
        if isinstance(vars(layer).get("forward"), FunctionType):
            # A copy of the module would keep the function, which calls the layer that it was made for.
            return (
                f"{where} has a forward that was put on this one object, and all experts would call it in place of "
                "their own; change its class, or use a hook"
            )
        if hasattr(layer, "base_layer"):
            # The effective weight is W + B A, and mean(B A) is not mean(B) mean(A): averaging the factors would not
            # average the function.
            return (
                f"{where} is an adapter (LoRA), and the mean of products is not the product of means; adapt layers "
                "outside of the FFNs, or merge_and_unload() first"
            )
    strange = next((key for key, p in ffn.named_parameters() if not p.is_floating_point()), None)
    return strange and f"its {strange} is not a floating-point number, so that experts have no mean"


def _map_of(layer: nn.Module) -> _Map | None:
    """Return the sizes of a linear layer, of an equivalent layer, or of a module with one and norms.

    None means that it is not such a layer.
    """
    layer = getattr(layer, "base_layer", layer)  # the layer inside of an adapter
    if isinstance(layer, nn.Linear):
        return _Map(layer.in_features, layer.out_features)
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return None if any(size != 1 for size in layer.kernel_size) else _Map(layer.in_channels, layer.out_channels)
    if type(layer).__name__ == "Conv1D" and hasattr(layer, "nf"):  # GPT-2's, of transformers
        inputs, outputs = layer.get_parameter("weight").shape
        return _Map(inputs, outputs)
    inner = [child for child in layer.children() if not _holds_vectors(child)]
    return _map_of(inner[0]) if len(inner) == 1 else None


def _is_there_and_back(sizes: list[_Map], any_width: bool) -> bool:
    """Return True for the sizes of an FFN: C -> H -> C, or gated: C -> H twice, or C -> 2H, and H -> C."""
    if len(sizes) == 2:
        first, last = sizes
        hidden_sizes = [last.inputs, 2 * last.inputs]
    elif len(sizes) == 3 and len(set(sizes)) <= 2:
        # The size that occurs twice is C -> H, of the gate and the layer that it gates; the other is H -> C.
        # If C = H all three are equal, and `others` is empty.
        (first, _), *others = Counter(sizes).most_common()
        last = others[0][0] if others else first
        hidden_sizes = [last.inputs]
    else:
        return False
    # H > C distinguishes an FFN from two projections of an attention. If the names are those of an FFN, any H is taken.
    wider = any_width or last.inputs > first.inputs
    returns = first.outputs in hidden_sizes and last.outputs == first.inputs
    return returns and wider and first.inputs >= MIN_FEATURES


def _holds_vectors(module: nn.Module) -> bool:
    """Return True for norms, scales and activations.

    It is also True for depthwise convolutions, so that `why_no_expert` can name them in its message.
    """
    return all(
        _is_vector(parameter) or (isinstance(owner, _ConvNd) and owner.groups > 1)
        for owner in module.modules()
        for parameter in owner.parameters(recurse=False)
    )


def _is_vector(parameter: nn.Parameter) -> bool:
    return parameter.numel() == max(parameter.shape, default=1)


def _has_split_ffn(module: nn.Module, layout: tuple[str, ...], beside: str | None) -> bool:
    parts = [get_part(module, part) for part in layout]
    if any(part is None for part in parts) or (beside and not hasattr(module, beside)):
        return False
    sizes = [size for part in parts if isinstance(part, nn.Module) and (size := _map_of(part))]
    return _is_there_and_back(sizes, any_width=True)
