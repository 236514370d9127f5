"""The common interface of all results of evaluations, for the loop, the summary and the commands."""

from typing import Any, Protocol


class Score(Protocol):
    """The interface of the result of an evaluation."""

    @property
    def samples(self) -> int:
        """Number of samples that were measured."""

    def metrics(self) -> dict[str, float]:
        """Return the metrics by name, for logs and summaries."""

    def describe(self) -> str:
        """Describe the result in one line."""

    def table(self) -> str:
        """Write the result as text of several lines."""

    def to_json(self) -> dict[str, Any]:
        """Return all fields and metrics in plain types."""
