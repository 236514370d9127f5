"""The common face of all results of evaluations, for the loop, the summary and the commands."""

from typing import Any, Protocol


class Score(Protocol):
    """The result of an evaluation."""

    @property
    def samples(self) -> int:
        """Number of samples that were measured."""

    def metrics(self) -> dict[str, float]:
        """Numbers by name, for logs and summaries."""

    def describe(self) -> str:
        """The result in a few words."""

    def table(self) -> str:
        """The result for reading, in several lines."""

    def to_json(self) -> dict[str, Any]:
        """Everything there is, in plain types."""
