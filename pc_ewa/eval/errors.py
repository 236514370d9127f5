"""The samples that a classifier gets wrong, by name."""

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pc_ewa.data import Clouds
from pc_ewa.eval.accuracy import Accuracy, evaluate_classifier
from pc_ewa.eval.batches import EvalBatch
from pc_ewa.eval.settings import EvalSettings


class WrongSample(NamedTuple):
    """A wrongly classified sample, with the probabilities of the predicted and of the true class.

    `name` is the name in the dataset, or the position in a dataset without names.
    """

    name: str
    true: str
    predicted: str
    probability: float
    probability_true: float


def evaluate_errors(
    model: nn.Module, clouds: Clouds, settings: EvalSettings, *, device: torch.device | None = None
) -> tuple[Accuracy, list[WrongSample]]:
    """Classify every cloud once, as `evaluate_classifier`, and collect the wrong ones, the most confident first.

    For one process. Under torchrun each process would get the errors of its share only.
    """
    wrong: list[WrongSample] = []

    def note(batch: EvalBatch) -> Tensor:
        logits: Tensor = model(batch.points)
        probabilities = logits.float().softmax(1)
        predicted = logits.float().argmax(1)
        for row in (predicted != batch.labels).nonzero().flatten().tolist():
            true, taken = int(batch.labels[row]), int(predicted[row])
            place = batch.indices[row]
            name = clouds.shape_names[place] if clouds.shape_names else str(place)
            known = clouds.class_names[taken] if taken < clouds.num_classes else str(taken)
            both = float(probabilities[row, taken]), float(probabilities[row, true])
            wrong.append(WrongSample(name, clouds.class_names[true], known, *both))
        return logits

    accuracy = evaluate_classifier(model, clouds, settings, device=device, predict=note)
    return accuracy, sorted(wrong, key=lambda sample: -sample.probability)


def errors_as_csv(wrong: Sequence[WrongSample]) -> str:
    """Write a CSV with one row per sample."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(WrongSample._fields)
    writer.writerows(wrong)
    return text.getvalue()
