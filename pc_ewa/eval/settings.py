"""The presentation of clouds to a model in evaluation, shared by validation, protocols and probes."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pc_ewa import ops
from pc_ewa.config import Data, Train
from pc_ewa.data.transforms import eval_index, normalize_unit_sphere, random_index


@dataclass(frozen=True)
class EvalSettings:
    """The presentation of clouds to a model in evaluation: number of points, sampling, normalisation, precision.

    Attributes:
        num_points: points of each cloud that the model sees.
        normalize: centre and scale each cloud into the unit sphere.
        sampling: "farthest" samples the farthest points of the normalised cloud. "random" draws points first, the same
            for a batch each time, then normalises them.
        batch_size: clouds in a batch.
        precision: "fp32", or "bf16" for autocast.

    Example:
        >>> EvalSettings(num_points=1024).batch_size
        64
    """

    num_points: int
    normalize: bool = True
    sampling: Literal["farthest", "random"] = "farthest"
    batch_size: int = 64
    precision: Literal["fp32", "bf16"] = "fp32"

    @classmethod
    def of(cls, data: Data, train: Train) -> "EvalSettings":
        """Make the settings of an experiment. Clouds are always sampled by their farthest points."""
        # Without stored activations a batch needs less memory than in training.
        return cls(data.num_points, data.normalize, "farthest", 2 * train.batch_size, train.precision)

    def present(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise and sample clouds (B, P, 3).

        Returns:
            Points (B, num_points, 3), and their positions in the clouds (B, num_points).

        Raises:
            ValueError: clouds of fewer points.
        """
        if self.sampling == "random":
            # A new generator for each batch: the draw does not depend on the batches before, or on the number of
            # processes.
            generator = torch.Generator(points.device).manual_seed(0)
            index = random_index(points, self.num_points, generator)
            points = ops.gather_points(points, index)
            return normalize_unit_sphere(points) if self.normalize else points, index
        points = normalize_unit_sphere(points) if self.normalize else points
        index = eval_index(points, self.num_points)
        return ops.gather_points(points, index), index
