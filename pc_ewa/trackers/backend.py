"""`Backend`: the interface of all trackers, with the types that they show: numbers, tables, clouds, files."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


class TrackedRun(NamedTuple):
    """The run that a tracker shows.

    Attributes:
        folder: the run folder.
        identity: returns the id of the run. The first call creates it; a resumed run has the same id.
        config: the resolved config, in plain types.
        resumed_step: optimizer steps done before. Records of later steps, left by an interrupted run, are invalid.

    Example:
        >>> TrackedRun(Path("runs/quickstart"), identity=lambda: "1a2b3c4d", config={}).resumed_step
        0
    """

    folder: Path
    identity: Callable[[], str]
    config: Mapping[str, Any]
    resumed_step: int = 0


class Cloud(NamedTuple):
    """A coloured point cloud.

    Attributes:
        points: (N, 3), y up.
        colours: (N, 3), red, green and blue from 0 to 1.
        title: a caption.

    Example:
        >>> Cloud(np.zeros((8, 3)), np.ones((8, 3)), "chair").points.shape
        (8, 3)
    """

    points: Floats
    colours: Floats
    title: str = ""


Cell = str | int | float | Cloud  # of a table


class Backend(ABC):
    """The interface of a tracker of one run. The class takes a `TrackedRun`, and the keys of its section by keyword.

    If a method raises, the error is printed once, the tracker is dropped, and training continues.

    Attributes:
        title: its name in messages.
        by_default: True for a tracker that is used without its section in the config, too.

    Example:
        >>> from pc_ewa.trackers import TRACKERS
        >>> [TRACKERS["wandb"].title, TRACKERS["wandb"].by_default]
        ['Weights & Biases', True]
    """

    title: ClassVar[str]
    by_default: ClassVar[bool] = False

    @abstractmethod
    def __init__(self, run: TrackedRun, **settings: Any) -> None:
        """Start to track a run. `run.identity()` returns its id."""

    @classmethod
    @abstractmethod
    def wanted(cls, **settings: Any) -> bool:
        """Return True if these keys of its section switch the tracker on.

        Raises:
            ConfigError: a value that the tracker refuses.
            ModuleNotFoundError: the tracker is not installed.
        """

    @abstractmethod
    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record numbers by name, after `step` optimizer steps."""

    @abstractmethod
    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Show a table. Its cells are text, numbers or clouds."""

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
        """Upload a file of weights with metadata in plain values."""

    @abstractmethod
    def summary(self, summary: Mapping[str, Any]) -> None:
        """Record the summary of the run."""

    @abstractmethod
    def close(self, failed: bool) -> list[str]:
        """Write pending records. Returns lines for the user, such as the command that uploads the run."""
