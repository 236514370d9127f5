"""Time what training costs: `step` compares a training step with EWA to the same step of the dense model."""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch

from pc_ewa.config import Experiment, load_experiment
from pc_ewa.errors import ConfigError, exit_on_error
from pc_ewa.progress import progress
from pc_ewa.train.build import build
from pc_ewa.train.distributed import World, join_world
from pc_ewa.train.loop import train_step

EPILOG = """\
examples:
  python tools/benchmark.py step configs/quickstart.yaml
  python tools/benchmark.py step configs/official_size.yaml --pairs 5
  python tools/benchmark.py step configs/quickstart.yaml train.precision=bf16 device=cuda

A step is all of it: drawing and augmenting the batch, forward, backward, clipping, AdamW, averaging. Dense and EWA
steps take turns, so that a drift of the speed of the machine falls on both; the ratio is the median over the pairs."""


@exit_on_error
def main(arguments: list[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("step",), help="what to time")
    parser.add_argument("config", help="the experiment, a YAML file with an ewa section")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change keys of the config")
    parser.add_argument("--pairs", type=int, default=15, help="pairs of steps to time (default: 15)")
    options = parser.parse_intermixed_args(arguments)
    if options.pairs < 1:
        raise ConfigError(f"--pairs {options.pairs}; time at least one")
    experiment = load_experiment(options.config, options.overrides)
    if experiment.ewa is None:
        raise ConfigError(f"{options.config} has no ewa section to compare; add ewa.num_experts=4")
    print(compare_steps(experiment, options.pairs))


def compare_steps(experiment: Experiment, pairs: int) -> str:
    """Time EWA and dense steps in turn, after one of each to warm up, and describe what came out."""
    with join_world(experiment.device) as world:
        sides = [timed_step(variant, world) for variant in (experiment, experiment.model_copy(update={"ewa": None}))]
        for side in sides:
            side(0)
        # Whoever goes second finds warm caches: take turns.
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
    """Build an experiment; the result runs one step of it and returns the seconds it took."""
    setup = build(experiment, world)
    setup.model.train()

    def run(step: int) -> float:
        began = time.perf_counter()
        train_step(setup, experiment, world, setup.model, step)
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    return run


if __name__ == "__main__":
    sys.exit(main())
