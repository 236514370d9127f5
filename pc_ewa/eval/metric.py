"""Metrics: their titles, units and directions."""

from typing import NamedTuple


class Metric(NamedTuple):
    """A metric by which models are compared. `key` is its name in metrics.jsonl and summary.json."""

    key: str
    title: str
    higher_is_better: bool = True
    percent: bool = True

    def format(self, value: float) -> str:
        """Write a value with its unit."""
        return f"{value:.1%}" if self.percent else f"{value:.5g}"


ACCURACY = Metric("accuracy", "accuracy")
INSTANCE_MIOU = Metric("instance_miou", "instance mIoU")
LOSS = Metric("loss", "loss", higher_is_better=False, percent=False)
