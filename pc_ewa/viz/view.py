"""`View`: the record of one view, read by the table VIEWS and by `pc-ewa show`."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature

from pc_ewa.viz.scene import Picture

# Parameters that are inputs of a view, not options. `pc-ewa show` loads them from a source; Python callers pass them.
SUBJECTS = {
    "files": "files of shapes",
    "clouds": "the shapes to show, a split of a dataset",
    "training": "the training shapes of the same dataset",
    "model": "a network",
    "settings": "the presentation of clouds to the model",
    "augmentation": "the random changes of training",
    "metrics": "the lines of a run's metrics.jsonl",
}


@dataclass(frozen=True)
class View:
    """A view: a function that returns a scene or a chart.

    Attributes:
        title: a few words for lists of views.
        make: the function. Its parameters named in SUBJECTS are inputs. The others are options, checked by their
            annotations.
        experts: True for a view of a model whose experts are not merged yet.

    Example:
        >>> view = pc_ewa.viz.View("nothing", lambda clouds, *, count=1: None)
        >>> view.needs, view.options
        ({'clouds'}, {'count'})
    """

    title: str
    make: Callable[..., Picture]
    experts: bool = False

    @property
    def needs(self) -> set[str]:
        """Names in SUBJECTS that are parameters of the view."""
        return set(signature(self.make).parameters) & set(SUBJECTS)

    @property
    def options(self) -> set[str]:
        """Names of the options."""
        return set(signature(self.make).parameters) - set(SUBJECTS)
