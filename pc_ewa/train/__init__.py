"""Training: `run(experiment)` does all of it."""

from pc_ewa.train.run import run

__all__ = ["run"]
