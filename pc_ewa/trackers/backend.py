"""`Backend`: the one face of all trackers, and what they show: numbers, tables, clouds, files."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


class TrackedRun(NamedTuple):
    """The run that a tracker is to show.

    Attributes:
        folder: the run folder.
        identity: returns the id of the run; the first call decides it, and after a resume it is the same.
        config: the resolved config, in plain types.
        resumed_step: optimizer steps that were done before; later ones, left by a run that was cut off, do not count.
    """

    folder: Path
    identity: Callable[[], str]
    config: Mapping[str, Any]
    resumed_step: int = 0


class Cloud(NamedTuple):
    """A coloured cloud.

    Attributes:
        points: (N, 3), y up.
        colours: (N, 3), red, green and blue from 0 to 1.
        title: a few words.
    """

    points: Floats
    colours: Floats
    title: str = ""


Cell = str | int | float | Cloud  # of a table


class Backend(ABC):
    """One tracker while it shows a run. The class takes a `TrackedRun`, and the keys of its section by keyword.

    Whatever a method raises is told once, and the tracker is left out from then on: training goes on.

    Attributes:
        title: its name in messages.
        by_default: True for a tracker that a config without its section uses too.
    """

    title: ClassVar[str]
    by_default: ClassVar[bool] = False

    @abstractmethod
    def __init__(self, run: TrackedRun, **settings: Any) -> None:
        """Start to show a run; `run.identity()` is its id."""

    @classmethod
    @abstractmethod
    def wanted(cls, **settings: Any) -> bool:
        """Return whether these keys of its section switch it on.

        Raises:
            ConfigError: a value that it refuses, found before anything long starts.
            ModuleNotFoundError: it is not installed.
        """

    @abstractmethod
    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record numbers by name, after `step` optimizer steps."""

    @abstractmethod
    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Show a table; its cells are text, numbers or clouds."""

    @abstractmethod
    def confusion(self, step: int, class_names: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
        """Show a confusion matrix: a row for each true class, a column for each predicted one."""

    @abstractmethod
    def clouds(self, step: int, name: str, clouds: Sequence[Cloud]) -> None:
        """Show clouds side by side."""

    @abstractmethod
    def page(self, step: int, name: str, path: Path) -> None:
        """Show an HTML file."""

    @abstractmethod
    def file(self, name: str, path: Path, metadata: Mapping[str, Any], aliases: Sequence[str] = ()) -> None:
        """Keep a file of weights, with plain values about it."""

    @abstractmethod
    def summary(self, summary: Mapping[str, Any]) -> None:
        """Record what the run has come to."""

    @abstractmethod
    def close(self, failed: bool) -> list[str]:
        """Write what is due; returns lines for the user, such as the command that uploads the run."""
