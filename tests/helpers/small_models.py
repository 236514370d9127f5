"""Every model of MODELS, as small as it can be, and its outputs."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pc_ewa.models import MODELS, create_model

SMALL: dict[str, Any] = {
    **{"dim": 12, "depth": 3, "num_heads": 3, "num_groups": 8, "group_size": 4, "encoder_width": 8, "encoder_dim": 12},
    **{"num_classes": 5, "num_parts": 6, "num_categories": 3, "levels": (16, 12), "decoder_depth": 1},
    **{"num_tokens": 12, "tokens_dim": 8, "decoder_dim": 8, "graph_width": 4, "decoder_width": 8},
    **{"contrast_dim": 8, "queue_size": 16},
}
WITH_FFNS = [name for name in MODELS if hasattr(MODELS[name], "expert_ffns")]


def small(name: str, seed: int = 0, **arguments: Any) -> nn.Module:
    """Build a small model from a seed. Arguments that the model does not have are left out."""
    torch.manual_seed(seed)
    accepted = inspect.signature(MODELS[name]).parameters
    return create_model(name, **{key: value for key, value in (SMALL | arguments).items() if key in accepted})


def run(model: nn.Module, points: Tensor) -> Any:
    """Call a model on clouds; segmenters also get the category of each cloud."""
    return model(points, torch.arange(len(points)) % 3) if model.task == "segment" else model(points)


def tensors(output: object) -> Iterator[Tensor]:
    """Yield every tensor in the output of a model."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict | tuple | list):
        for item in output.values() if isinstance(output, dict) else output:
            yield from tensors(item)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copy the state_dict."""
    return {key: value.clone() for key, value in model.state_dict().items()}
