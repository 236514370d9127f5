"""The trackers by name. A new one is a file with a subclass of `Backend`, and a line in TRACKERS.

The name is the section of a config that switches it on. The keyword arguments of the class are the keys of the section.
"""

from pc_ewa.trackers.backend import Backend, Cell, Cloud, TrackedRun
from pc_ewa.trackers.tensorboard import TensorboardBackend
from pc_ewa.trackers.wandb import WandbBackend

TRACKERS: dict[str, type[Backend]] = {
    "wandb": WandbBackend,
    "tensorboard": TensorboardBackend,
}

__all__ = ["Backend", "Cell", "Cloud", "TRACKERS", "TrackedRun"]
