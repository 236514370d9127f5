"""The loss of a self-supervised model on clouds that it does not train on."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pc_ewa.data import Clouds
from pc_ewa.eval.batches import Finite, evaluation, sum_over_processes
from pc_ewa.eval.settings import EvalSettings


@dataclass(frozen=True)
class PretrainingLoss:
    """Mean loss and means of its terms over samples."""

    means: dict[str, float]
    samples: int

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
        return {**self.means, "samples": self.samples}


def evaluate_pretraining(
    model: nn.Module,
    clouds: Clouds,
    settings: EvalSettings,
    *,
    device: torch.device | None = None,
    title: str = "evaluating",
) -> PretrainingLoss:
    """Average the loss of a model that returns a `LossOutput`; under torchrun each process takes its share.

    The model's masks are the same each time in evaluation, and so are the points.

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
                sums[name] = before + finite.seen(value) * len(batch.indices)
    finite.check(model, clouds)
    totals = sum_over_processes({name: total.item() for name, total in sums.items()})
    return PretrainingLoss({name: total / len(clouds) for name, total in totals.items()}, len(clouds))
