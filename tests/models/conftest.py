from collections.abc import Callable

import numpy as np
import pytest
import torch
from parity import by_rule
from small_models import small
from torch import Tensor, nn

from pc_ewa.models.point_mae_classifier import PointMAEClassifier


@pytest.fixture
def classifier() -> Callable[..., PointMAEClassifier]:
    """Build a small one: `classifier(seed=0, **kwargs)`."""

    def build(seed: int = 0, **kwargs: object) -> PointMAEClassifier:
        return small("point_mae_classifier", seed, **{"depth": 2, "encoder_dim": None, **kwargs})

    return build


@pytest.fixture(scope="session")
def clouds() -> Callable[..., Tensor]:
    """Clouds by the rule that the official numbers were computed with: `clouds(seed, batch, count)`."""

    def build(seed: int, batch: int, count: int) -> Tensor:
        random = np.random.RandomState(seed)
        points = random.standard_normal((batch, count, 3)) * random.uniform(0.3, 1.0, (batch, 1, 3))
        points -= points.mean(1, keepdims=True)
        points /= np.linalg.norm(points, axis=-1).max(1)[:, None, None]
        return torch.from_numpy(points.astype(np.float32))

    return build


@pytest.fixture(scope="session")
def official_weights() -> Callable[[nn.Module], dict[str, Tensor]]:
    """Weights by the rule that the official numbers were computed with, in the types of the model's own."""

    def build(model: nn.Module) -> dict[str, Tensor]:
        return {key: by_rule(key, value) for key, value in model.state_dict().items()}

    return build
