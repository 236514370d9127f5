"""The cost of EWA: the time of a training step with EWA, relative to the dense model."""

import statistics
import time
from collections.abc import Callable

import torch

from pc_ewa.config import Experiment
from pc_ewa.progress import progress
from pc_ewa.train.distributed import World, join_world
from pc_ewa.train.loop import train_step
from pc_ewa.train.setup import build


def compare_steps(experiment: Experiment, pairs: int) -> str:
    """Time EWA and dense steps in turn, after one of each to warm up. Returns the results as text."""
    with join_world(experiment.device) as world:
        sides = [timed_step(variant, world) for variant in (experiment, experiment.model_copy(update={"ewa": None}))]
        for side in sides:
            side(0)
        # The second of a pair finds warm caches: alternate the order.
        rows = []
        for pair in progress(range(1, pairs + 1), "timing"):
            order = (0, 1) if pair % 2 else (1, 0)
            seconds = {index: sides[index](pair) for index in order}
            rows.append((seconds[0], seconds[1]))
        where = (
            torch.cuda.get_device_name() if world.device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
        )
    ewa, dense = (statistics.median(column) * 1e3 for column in zip(*rows, strict=True))
    ratios = sorted(a / b for a, b in rows)
    return (
        f"{experiment.model.name}, batch {experiment.train.batch_size} x {experiment.data.num_points} points, {where}\n"
        f"dense step {dense:.1f} ms, EWA step {ewa:.1f} ms (medians of {pairs})\n"
        f"EWA / dense: median {statistics.median(ratios):.3f}, from {ratios[0]:.3f} to {ratios[-1]:.3f}"
    )


def timed_step(experiment: Experiment, world: World) -> Callable[[int], float]:
    """Build an experiment, and return a function that runs one step and returns its seconds."""
    setup = build(experiment, world)
    setup.model.train()

    def run(step: int) -> float:
        began = time.perf_counter()
        train_step(setup, experiment, world, setup.model, step)
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    return run
