"""Classification accuracy from one confusion matrix: overall, mean over classes, per class, confusions."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pc_ewa.data import Clouds
from pc_ewa.eval.batches import EvalBatch, Finite, evaluation
from pc_ewa.eval.settings import EvalSettings
from pc_ewa.text import printable

Predict = Callable[[EvalBatch], Tensor]  # logits (B, classes)


class ClassCount(NamedTuple):
    """The number of samples of a class, and of those classified correctly."""

    name: str
    samples: int
    correct: int


class Confusion(NamedTuple):
    """The number of samples of one class that were classified as another."""

    true: str
    predicted: str
    samples: int


def uncertainty(correct: int, samples: int) -> str:
    """Return the binomial standard error of an accuracy as text, or what all samples right, or none, prove at 95 %.

    The standard error of 0 and of 100 % is 0, so it says nothing there; Wilson's interval does.

    Example:
        >>> uncertainty(7, 8)
        'standard error 11.69%'
        >>> uncertainty(8, 8)
        '95 % interval from 67.56%'
    """
    bound = samples / (samples + 1.96**2)
    if correct == samples:
        return f"95 % interval from {bound:.2%}"
    if correct == 0:
        return f"95 % interval to {1 - bound:.2%}"
    return f"standard error {binomial_error(correct, samples):.2%}"


def binomial_error(correct: int, samples: int) -> float:
    """Return the binomial standard error of the share `correct / samples`.

    Example:
        >>> round(binomial_error(5, 10), 3)
        0.158
    """
    share = correct / samples
    return math.sqrt(share * (1 - share) / samples)


@dataclass(frozen=True)
class Accuracy:
    """A confusion matrix and the metrics derived from it.

    Attributes:
        confusion: (classes, classes) counts: true class, predicted class.
        class_names: name of every class. Empty: classes are named by their positions.
        votes: number of draws of each cloud over which logits were averaged. Above 1 the result is labelled "voted".
        right: (samples,) booleans in the order of the dataset, True for correct samples. None if unknown.
        loss: mean cross-entropy over the samples, without label smoothing. None without logits.

    Raises:
        ValueError: another number of names than of classes.

    Example:
        >>> accuracy = Accuracy(torch.tensor([[3, 1], [0, 4]]), ("chair", "table"))
        >>> accuracy.describe()
        'accuracy 87.50% (7/8)'
    """

    confusion: Tensor
    class_names: tuple[str, ...] = ()
    votes: int = 1
    right: Tensor | None = None
    loss: float | None = None

    def __post_init__(self) -> None:
        """Check the names."""
        if self.class_names and len(self.class_names) != len(self.confusion):
            raise ValueError(
                f"{len(self.class_names)} class_names for {len(self.confusion)} classes; give one for each"
            )

    @property
    def samples(self) -> int:
        """Number of samples."""
        return int(self.confusion.sum())

    @property
    def correct(self) -> int:
        """Number of samples classified correctly."""
        return int(self.confusion.trace())

    @property
    def overall(self) -> float:
        """Share of samples classified correctly ("OA")."""
        return self.correct / self.samples

    @property
    def mean_class(self) -> float:
        """Mean over the classes present of the share classified correctly ("mAcc")."""
        per_class = self.confusion.sum(1)
        # A class without test samples has no accuracy: 0 / 0 would make the mean NaN.
        present = per_class > 0
        return float((self.confusion.diagonal()[present] / per_class[present]).mean())

    @property
    def standard_error(self) -> float:
        """Binomial standard error of `overall` for this number of samples."""
        return binomial_error(self.correct, self.samples)

    @property
    def per_class(self) -> tuple[ClassCount, ...]:
        """Counts of every class in order, including classes without samples."""
        counts = zip(self._names, self.confusion.sum(1).tolist(), self.confusion.diagonal().tolist(), strict=True)
        return tuple(ClassCount(*count) for count in counts)

    @property
    def confusions(self) -> tuple[Confusion, ...]:
        """Confused pairs of classes, the most frequent first."""
        wrong = self.confusion - self.confusion.diag().diag()
        names = self._names
        pairs = [Confusion(names[t], names[p], int(wrong[t, p])) for t, p in wrong.nonzero().tolist()]
        return tuple(sorted(pairs, key=lambda pair: -pair.samples))

    def metrics(self) -> dict[str, float]:
        """Return accuracy, mean_class_accuracy, correct, standard_error by name; loss and votes if there are any."""
        metrics: dict[str, float] = {
            "accuracy": self.overall,
            "mean_class_accuracy": self.mean_class,
            "correct": self.correct,
            "standard_error": self.standard_error,
        }
        loss = {} if self.loss is None else {"loss": self.loss}
        return metrics | loss | ({"votes": self.votes} if self.votes > 1 else {})

    def describe(self) -> str:
        """Describe the accuracy in one line."""
        kind = f"voted accuracy (mean of {self.votes})" if self.votes > 1 else "accuracy"
        return f"{kind} {self.overall:.2%} ({self.correct}/{self.samples})"

    def table(self) -> str:
        """Write the accuracies, one line per class, and the ten most frequent confusions."""
        voted = [f"voted: mean of the logits over {self.votes} draws of each cloud"] if self.votes > 1 else []
        lines = [
            *voted,
            f"overall accuracy     {self.overall:.2%} "
            f"({self.correct}/{self.samples}, {uncertainty(self.correct, self.samples)})",
            f"mean class accuracy  {self.mean_class:.2%}",
        ]
        shown = [printable(name) for name in self._names]
        width = max(map(len, shown))
        for name, (_, samples, correct) in zip(shown, self.per_class, strict=True):
            share = f"{correct / samples:7.1%} ({correct}/{samples})" if samples else "no samples"
            lines.append(f"  {name:<{width}}  {share}")
        pairs = [
            (f"{printable(true)} -> {printable(predicted)}", samples)
            for true, predicted, samples in self.confusions[:10]
        ]
        if pairs:
            width = max(len(pair) for pair, _ in pairs)
            lines.append("most frequent confusions (true class -> taken for)")
            lines += [f"  {pair:<{width}}  {samples}" for pair, samples in pairs]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return all fields and metrics in plain types."""
        return {
            **self.metrics(),
            "samples": self.samples,
            "votes": self.votes,
            "class_names": list(self._names),
            "per_class": [count._asdict() for count in self.per_class],
            "confusion": self.confusion.tolist(),
        }

    @property
    def _names(self) -> tuple[str, ...]:
        return self.class_names or tuple(map(str, range(len(self.confusion))))


def evaluate_classifier(
    model: nn.Module,
    clouds: Clouds,
    settings: EvalSettings,
    *,
    device: torch.device | None = None,
    title: str = "evaluating",
    predict: Predict | None = None,
) -> Accuracy:
    """Classify every cloud once, without augmentation or votes. Under torchrun the processes share the clouds.

    Batches are the same for any number of processes. The mode of the model is restored afterwards.

    Args:
        model: clouds (B, N, 3) -> logits (B, classes).
        clouds: the clouds to classify.
        settings: the presentation of the clouds.
        device: the device of the batches. None: that of the model.
        title: title of the progress bar.
        predict: computes the logits of a batch. None: one forward pass on its points.

    Raises:
        OutputError: logits that hold NaN or inf.
        ValueError: fewer points than `num_points`, or a model with another number of classes.
    """
    device = device or next(model.parameters()).device
    classes = clouds.num_classes
    confusion, finite = torch.zeros(classes, classes, dtype=torch.int64, device=device), Finite(device)
    right = torch.zeros(len(clouds), dtype=torch.uint8, device=device)
    # One loss per sample, in float64 and in place: the mean is the same for any number of processes.
    losses = torch.zeros(len(clouds), dtype=torch.float64, device=device)
    with evaluation(model, clouds, settings, device=device, title=title) as batches:
        for batch in batches:
            logits = finite.seen(predict(batch) if predict else model(batch.points))
            if logits.shape[1] != classes:
                raise ValueError(f"the model has {logits.shape[1]} classes, {clouds.name} has {classes}")
            predicted = logits.float().argmax(1)
            right[batch.indices.start : batch.indices.stop] = predicted == batch.labels
            # The matrix grows on the device; reading a count per batch would wait for the GPU each time.
            cells = batch.labels * classes + predicted
            confusion += torch.bincount(cells, minlength=confusion.numel()).view_as(confusion)
            each = F.cross_entropy(logits.float(), batch.labels, reduction="none")
            losses[batch.indices.start : batch.indices.stop] = each.double()
    finite.check(model, clouds)
    if dist.is_initialized():
        dist.all_reduce(confusion)
        dist.all_reduce(right)  # each cloud was seen by one process and is 0 in the others: the sum is the value
        dist.all_reduce(losses)
    return Accuracy(confusion.cpu(), clouds.class_names, loss=float(losses.mean()), right=right.bool().cpu())
