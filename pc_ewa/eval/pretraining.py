"""The loss of a self-supervised model on held-out clouds."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pc_ewa.data import Clouds
from pc_ewa.eval.batches import Finite, evaluation, sum_over_processes
from pc_ewa.eval.settings import EvalSettings


@dataclass(frozen=True)
class PretrainingLoss:
    """The mean loss and the means of its terms over samples.

    Example:
        >>> PretrainingLoss({"loss": 0.0251}, samples=10).describe()
        'loss 0.0251'
    """

    means: dict[str, float]
    samples: int

    def metrics(self) -> dict[str, float]:
        """Return `loss` and its terms by name."""
        return dict(self.means)

    def describe(self) -> str:
        """Describe the loss in one line."""
        return f"loss {self.means['loss']:.5g}"

    def table(self) -> str:
        """Write the loss and its terms, one per line."""
        return "\n".join(f"{name:<16} {value:.6g}" for name, value in self.means.items())

    def to_json(self) -> dict[str, Any]:
        """Return all fields in plain types."""
        return {**self.means, "samples": self.samples}


def evaluate_pretraining(
    model: nn.Module,
    clouds: Clouds,
    settings: EvalSettings,
    *,
    device: torch.device | None = None,
    title: str = "evaluating",
) -> PretrainingLoss:
    """Average the loss of a model that returns a `LossOutput`. Under torchrun the processes share the clouds.

    Masks and sampled points are the same in every evaluation, so that losses of different epochs compare.

    Raises:
        OutputError: a loss that is NaN or inf.
    """
    device = device or next(model.parameters()).device
    sums: dict[str, Tensor] = {}
    finite = Finite(device)
    with evaluation(model, clouds, settings, device=device, title=title) as batches:
        for batch in batches:
            output = model(batch.points)
            for name, value in {"loss": output.loss, **output.terms}.items():
                before = sums.get(name, torch.zeros((), dtype=torch.float64, device=device))
                # Weighted by the size of the batch: the last one is smaller.
                sums[name] = before + finite.seen(value) * len(batch.indices)
    finite.check(model, clouds)
    totals = sum_over_processes({name: total.item() for name, total in sums.items()})
    return PretrainingLoss({name: total / len(clouds) for name, total in totals.items()}, len(clouds))
