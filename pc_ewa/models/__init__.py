"""The networks by name."""

from typing import Any

from torch import nn

from pc_ewa.errors import ConfigError
from pc_ewa.models.classifier import PointMAEClassifier
from pc_ewa.models.official import LoadReport, load_pretrained
from pc_ewa.signatures import check_arguments, choose

MODELS: dict[str, type[nn.Module]] = {
    "point_mae_classifier": PointMAEClassifier,
}


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """Build a model by its name in MODELS; the defaults are the official configuration.

    Raises:
        ConfigError: an unknown name or argument (the nearest is named), or an impossible value.
    """
    model_class = choose("model", name, MODELS)
    return model_class(**check_arguments(f"model {name}", model_class, kwargs))


__all__ = ["MODELS", "create_model", "load_pretrained", "LoadReport", "ConfigError"]
