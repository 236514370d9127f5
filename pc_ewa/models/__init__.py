"""The networks by name."""

from typing import Any

from torch import nn

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
# become mixtures of experts) and `head_keys` (the beginnings of keys that a pre-trained file need not have).
MODELS: dict[str, type[Any]] = {
    "point_mae": PointMAE,
    "point_mae_classifier": PointMAEClassifier,
    "point_mae_segmenter": PointMAESegmenter,
    "dvae": DiscreteVAE,
    "point_bert": PointBERT,
    "point_bert_classifier": PointBERTClassifier,
    "point_bert_segmenter": PointBERTSegmenter,
}


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """Build a model by its name in MODELS; the defaults are the official configuration.

    Raises:
        ConfigError: an unknown name or argument (the nearest is named), or an impossible value.
    """
    model_class = choose("model", name, MODELS)
    return model_class(**check_arguments(f"model {name}", model_class, kwargs))


__all__ = ["MODELS", "create_model", "load_pretrained", "LoadReport"]
