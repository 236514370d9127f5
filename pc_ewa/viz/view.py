"""`View`: the record of one view, which the table VIEWS and `pc-ewa show` read."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature

from pc_ewa.viz.scene import Picture

# What a view may ask for, by the name of its parameter; `pc-ewa show` gets them, Python callers give them.
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
    """A view: a function that makes a scene or a chart.

    Attributes:
        title: in a few words, for lists.
        make: its parameters with names in SUBJECTS say what it needs, the others are its options, checked by their
            annotations.
        experts: True for a view of a model before its experts are merged.

    Example:
        >>> View("nothing", lambda clouds, *, count=1: None).needs
        {'clouds'}
    """

    title: str
    make: Callable[..., Picture]
    experts: bool = False

    @property
    def needs(self) -> set[str]:
        """Names in SUBJECTS that the view asks for."""
        return set(signature(self.make).parameters) & set(SUBJECTS)

    @property
    def options(self) -> set[str]:
        """Names of the options."""
        return set(signature(self.make).parameters) - set(SUBJECTS)
