"""Networks on point clouds, by name, and their pre-trained weights.

The networks are built from the same parts and share these arguments. The docstring of a class describes only the
arguments that it adds, or restricts.

Args:
    dim: width of the tokens.
    depth: number of transformer blocks.
    num_heads: attention heads; must divide `dim`.
    num_groups: patches per cloud.
    group_size: points per patch.
    encoder_dim: width of the patch encoder; a linear layer projects its tokens to `dim`.
    encoder_width: width of the first layer of the patch encoder, which is most of the cost of a small model.
    mlp_ratio: hidden width of the FFNs, in units of `dim`.
    drop_path: stochastic depth of the last block; the rate grows linearly from 0 at the first.
    head_dropout: dropout rate in the head.
"""

from typing import Any, Literal, overload

from torch import nn

from pc_ewa.errors import ConfigError
from pc_ewa.models.checkpoints.load import LoadReport, load_pretrained
from pc_ewa.models.dvae import DiscreteVAE
from pc_ewa.models.point_bert import PointBERT
from pc_ewa.models.point_bert_classifier import PointBERTClassifier
from pc_ewa.models.point_bert_segmenter import PointBERTSegmenter
from pc_ewa.models.point_mae import PointMAE
from pc_ewa.models.point_mae_classifier import PointMAEClassifier
from pc_ewa.models.point_mae_segmenter import PointMAESegmenter
from pc_ewa.validation import check_arguments, choose

# Each is an nn.Module with class attributes: `task` (the objective that trains it), `expert_ffns` (the FFNs that may
# become mixtures of experts) and `head_keys` (prefixes of keys that a pre-trained file need not have). Some have more:
# `needs_tokenizer` (True: `load_tokenizer` needs a trained dvae), `refuses_gate` (a text with the reason),
# `official_arguments` (defaults with recipe=official) and `next_step` (see `NextStep`).
MODELS: dict[str, type[Any]] = {
    "point_mae": PointMAE,
    "point_mae_classifier": PointMAEClassifier,
    "point_mae_segmenter": PointMAESegmenter,
    "dvae": DiscreteVAE,
    "point_bert": PointBERT,
    "point_bert_classifier": PointBERTClassifier,
    "point_bert_segmenter": PointBERTSegmenter,
}


@overload
def create_model(name: Literal["point_mae"], **kwargs: Any) -> PointMAE: ...
@overload
def create_model(name: Literal["point_mae_classifier"], **kwargs: Any) -> PointMAEClassifier: ...
@overload
def create_model(name: Literal["point_mae_segmenter"], **kwargs: Any) -> PointMAESegmenter: ...
@overload
def create_model(name: Literal["dvae"], **kwargs: Any) -> DiscreteVAE: ...
@overload
def create_model(name: Literal["point_bert"], **kwargs: Any) -> PointBERT: ...
@overload
def create_model(name: Literal["point_bert_classifier"], **kwargs: Any) -> PointBERTClassifier: ...
@overload
def create_model(name: Literal["point_bert_segmenter"], **kwargs: Any) -> PointBERTSegmenter: ...
@overload
def create_model(name: str, **kwargs: Any) -> nn.Module: ...
def create_model(name: str, **kwargs: Any) -> nn.Module:
    """Build a model by its name in MODELS. The defaults are the official configuration.

    Args:
        name: key of MODELS.
        kwargs: arguments of the model's class.

    Raises:
        ConfigError: an unknown name or argument (the message has the closest known one), or an impossible value.

    Example:
        >>> model = pc_ewa.create_model("point_mae_classifier", num_classes=10, depth=2)
        >>> model.eval()(torch.rand(4, 1024, 3)).shape
        torch.Size([4, 10])
    """
    model_class = choose("model", name, MODELS)
    arguments = check_arguments(f"model {name}", model_class, kwargs)
    try:
        model = model_class(**arguments)
    except (RuntimeError, MemoryError) as error:
        # torch's allocators raise a plain RuntimeError. Its text is the only sign, and any other error is a bug.
        if isinstance(error, RuntimeError) and "alloc" not in str(error):
            raise
        raise ConfigError(f"model {name} does not fit into memory with {kwargs}; make it smaller") from None
    model.built_as = {"name": name, **arguments}
    return model


__all__ = ["MODELS", "create_model", "load_pretrained", "LoadReport"]
