from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pc_ewa.models import create_model
from pc_ewa.models.classifier import PointMAEClassifier


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
