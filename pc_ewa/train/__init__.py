"""Training: `run(experiment)` does all of it."""

from pc_ewa.train.runner import run

__all__ = ["run"]
