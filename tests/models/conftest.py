from collections.abc import Callable

import numpy as np
import pytest
import torch
from parity import by_rule
from torch import Tensor, nn

from pc_ewa.models import create_model
from pc_ewa.models.point_mae_classifier import PointMAEClassifier


@pytest.fixture
def classifier() -> Callable[..., PointMAEClassifier]:
    """Build a small one: `classifier(seed=0, **kwargs)`."""

    def build(seed: int = 0, **kwargs: object) -> PointMAEClassifier:
        torch.manual_seed(seed)
        small = {"dim": 12, "depth": 2, "num_heads": 3, "num_groups": 8, "group_size": 4, "encoder_width": 8}
        return create_model("point_mae_classifier", **{"num_classes": 5, **small, **kwargs})

    return build


@pytest.fixture(scope="session")
def clouds() -> Callable[..., Tensor]:
    """Clouds by the rule that the official figures were computed with: `clouds(seed, batch, count)`."""

    def build(seed: int, batch: int, count: int) -> Tensor:
        random = np.random.RandomState(seed)
        points = random.standard_normal((batch, count, 3)) * random.uniform(0.3, 1.0, (batch, 1, 3))
        points -= points.mean(1, keepdims=True)
        points /= np.linalg.norm(points, axis=-1).max(1)[:, None, None]
        return torch.from_numpy(points.astype(np.float32))

    return build


@pytest.fixture(scope="session")
def official_weights() -> Callable[[nn.Module], dict[str, Tensor]]:
    """Weights by the rule that the official figures were computed with, in the types of the model's own."""

    def build(model: nn.Module) -> dict[str, Tensor]:
        return {key: by_rule(key, value) for key, value in model.state_dict().items()}

    return build


@pytest.fixture(scope="session")
def official_shapes() -> Callable[[int, int], dict[str, tuple[int, ...]]]:
    """Keys and shapes of the official backbone without tokens, in their order: `official_shapes(dim, depth)`."""

    def build(dim: int, depth: int) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}

        def layer(name: str, *weight: int, bias: bool = True) -> None:
            shapes[f"{name}.weight"] = weight
            if bias:
                shapes[f"{name}.bias"] = weight[:1]

        def batch_norm(name: str, width: int) -> None:
            layer(name, width)
            shapes[f"{name}.running_mean"] = shapes[f"{name}.running_var"] = (width,)
            shapes[f"{name}.num_batches_tracked"] = ()

        layer("encoder.first_conv.0", 128, 3, 1)
        batch_norm("encoder.first_conv.1", 128)
        layer("encoder.first_conv.3", 256, 128, 1)
        layer("encoder.second_conv.0", 512, 512, 1)
        batch_norm("encoder.second_conv.1", 512)
        layer("encoder.second_conv.3", dim, 512, 1)
        layer("pos_embed.0", 128, 3)
        layer("pos_embed.2", dim, 128)
        for i in range(depth):
            block = f"blocks.blocks.{i}"
            layer(f"{block}.norm1", dim)
            layer(f"{block}.norm2", dim)
            layer(f"{block}.mlp.fc1", 4 * dim, dim)
            layer(f"{block}.mlp.fc2", dim, 4 * dim)
            layer(f"{block}.attn.qkv", 3 * dim, dim, bias=False)
            layer(f"{block}.attn.proj", dim, dim)
        layer("norm", dim)
        return shapes

    return build
