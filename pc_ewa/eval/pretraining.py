"""The loss of a self-supervised model on clouds that it does not train on, the same way each time."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pc_ewa.data import Clouds
from pc_ewa.data.transforms import normalize_unit_sphere, random_subset
from pc_ewa.eval.common import add_up, in_evaluation, my_batches, prepare_eval


@dataclass(frozen=True)
class PretrainingLoss:
    """Mean loss and means of its terms over shapes."""

    means: dict[str, float]
    shapes: int

    def metrics(self) -> dict[str, float]:
        """`loss` and its terms."""
        return dict(self.means)

    def describe(self) -> str:
        """The loss in a few words."""
        return f"loss {self.means['loss']:.5g}"

    def table(self) -> str:
        """The loss and its terms, one a line."""
        return "\n".join(f"{name:<16} {value:.6g}" for name, value in self.means.items())

    def to_json(self) -> dict[str, Any]:
        """Everything there is, in plain types."""
        return {**self.means, "shapes": self.shapes}


@torch.no_grad()
def evaluate_pretraining(
    model: nn.Module,
    clouds: Clouds,
    num_points: int,
    *,
    sampling: Literal["farthest", "random"] = "farthest",
    normalize: bool = True,
    batch_size: int = 64,
    device: torch.device | None = None,
    precision: str = "fp32",
    title: str = "evaluating",
) -> PretrainingLoss:
    """Average the loss of a model that returns an `LossOutput`; under torchrun each process takes its share.

    Masks are those of the model in evaluation, which are the same each time; so are the points, whether they are the
    farthest or drawn.
    """
    device = device or next(model.parameters()).device
    sums: dict[str, Tensor] = {}
    with in_evaluation(model):
        for indices in my_batches(len(clouds), batch_size, title):
            points = clouds.batch(indices)[0].to(device)
            if sampling == "random":
                generator = torch.Generator(device).manual_seed(0)
                points = random_subset(points, num_points, generator)
                points = normalize_unit_sphere(points) if normalize else points
            else:
                points = prepare_eval(points, num_points, normalize)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                loss, parts = model(points)
            terms = {name: part for name, part in parts.items() if part.dim() == 0}
            for name, value in {"loss": loss, **terms}.items():
                sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64, device=device)) + value * len(indices)
    totals = add_up({name: total.item() for name, total in sums.items()})
    return PretrainingLoss({name: total / len(clouds) for name, total in totals.items()}, len(clouds))
