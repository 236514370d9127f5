"""The costs of the variants, measured side by side: parameters, FLOPs, time of a training step and of inference."""

import copy
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pc_ewa.compare.machine import hardware
from pc_ewa.compare.plan import Plan, Run
from pc_ewa.config import Experiment
from pc_ewa.flops import flops_of
from pc_ewa.trackers import TRACKERS
from pc_ewa.train.distributed import World, join_world
from pc_ewa.train.loop import train_step
from pc_ewa.train.restored import at_inference
from pc_ewa.train.setup import Setup, build

CLOUDS = 8  # in a batch at inference
SECONDS, MIN_ROUNDS, MAX_ROUNDS = 60.0, 5, 25  # as many rounds as fit into the time, within these bounds

# Runs once as if at `progress` (0 to 1) of training; returns the duration in seconds.
Timed = Callable[[float], float]


def measure_costs(plan: Plan, runs: Mapping[str, Sequence[Run]], known: Mapping[str, Any]) -> Mapping[str, Any]:
    """Measure the costs of the variants at their final settings, or return `known` if it is of the same settings.

    The weights are untrained, which changes no cost. The learning rate is 0, so that they stay as they are.

    Args:
        plan: the comparison.
        runs: the runs of each variant. The first of them is built.
        known: the result of an earlier call; empty without one.

    Returns:
        "key" and "where" of the measurement, and by variant in "variants": params_training, params_inference, flops
        (per cloud, of the merged model), step_seconds, step_ratio (to the baseline, None without it), inference_seconds
        (per cloud).

    Raises:
        Error: data or initial weights that are missing.
    """
    experiments = {variant: plan.resolve(found[0]) for variant, found in runs.items()}
    with join_world(plan.experiment.device) as world:
        threads = torch.get_num_threads()
        where = (
            torch.cuda.get_device_name()
            if world.device.type == "cuda"
            else f"{threads} CPU thread{'s' if threads > 1 else ''}"
        )
        key = _key(experiments, plan.baseline, where)
        if known.get("key") == key:
            return known
        print(f"measuring the costs of {len(runs)} variants side by side", flush=True)
        measured = _measure(experiments, plan.baseline, world)
    return {"key": key, "where": where, "variants": measured}


def count_flops(model: nn.Module, inputs: Sequence[Tensor]) -> int:
    """Count the FLOPs of a forward pass: matrix products and convolutions, with two FLOPs for a multiply-add."""
    with torch.no_grad():
        return flops_of(lambda: model(*inputs))


def _measure(experiments: Mapping[str, Experiment], baseline: str, world: World) -> dict[str, dict[str, Any]]:
    costs: dict[str, dict[str, Any]] = {}
    steps: dict[str, Timed] = {}
    passes: dict[str, Timed] = {}
    for variant, experiment in experiments.items():
        # With a rate of 0 the optimizer does its full work, and the weights of all rounds are the same.
        setup = build(experiment, world)._replace(learning_rate=lambda step: 0.0)
        model, inputs = at_inference(copy.deepcopy(setup.model).eval()), _inputs(setup, experiment)
        costs[variant] = {
            "params_training": sum(parameter.numel() for parameter in setup.model.parameters()),
            "params_inference": sum(parameter.numel() for parameter in model.parameters()),
            "flops": count_flops(model, inputs) / CLOUDS,
        }
        steps[variant] = _timed_step(setup, experiment, world)
        passes[variant] = _timed_pass(model, inputs, experiment, world)
    for what, sides in (("step", steps), ("inference", passes)):
        rounds = take_turns(sides)
        for variant, seconds in rounds.items():
            costs[variant][f"{what}_seconds"] = statistics.median(seconds)
            if what == "step":
                pairs = zip(seconds, rounds.get(baseline, []), strict=False)
                # The median of ratios within a round: a disturbance of the machine hits both sides of the ratio.
                ratios = [own / other for own, other in pairs]
                costs[variant]["step_ratio"] = statistics.median(ratios) if ratios else None
    return costs


def take_turns(sides: Mapping[str, Timed]) -> dict[str, list[float]]:
    """Time all sides in every round, in a rotating order.

    The order rotates because later sides find warm caches. The rounds are spread over training, so that a share rate
    that rises, or averaging within a window, costs the same as in a run.
    """
    names = list(sides)
    began = time.perf_counter()
    for name in names:  # once to warm up, and to see how long a round takes
        sides[name](0.5)
    took = time.perf_counter() - began
    rounds = max(MIN_ROUNDS, min(MAX_ROUNDS, int(SECONDS / max(took, 1e-3))))
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = (turn + 1) % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(sides[name]((turn + 0.5) / rounds))
    return seconds


def _inputs(setup: Setup, experiment: Experiment) -> tuple[Tensor, ...]:
    """Draw the model's input of 8 clouds of `num_points` points; a segmenter takes their categories too."""
    batch = setup.batches.draw(0, 0)
    some = torch.arange(CLOUDS, device=batch.points.device) % len(batch.points)
    return (batch.points[some], batch.labels[some]) if experiment.task == "segment" else (batch.points[some],)


def _timed_step(setup: Setup, experiment: Experiment, world: World) -> Timed:
    setup.model.train()

    def run(part: float) -> float:
        step = int(part * setup.total_steps)
        if setup.averager:
            setup.averager.steps_done = step
        return _seconds(lambda: train_step(setup, experiment, world, setup.model, step), world)

    return run


def _timed_pass(model: nn.Module, inputs: Sequence[Tensor], experiment: Experiment, world: World) -> Timed:
    half = experiment.train.precision == "bf16"

    def run(part: float) -> float:
        with torch.no_grad(), torch.autocast(world.device.type, torch.bfloat16, enabled=half):
            return _seconds(lambda: model(*inputs), world) / CLOUDS

    return run


def _seconds(work: Callable[[], object], world: World) -> float:
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _key(experiments: Mapping[str, Experiment], baseline: str, where: str) -> str:
    """Return a hash of the measured settings, without seed, output and trackers."""
    settings = {
        variant: experiment.model_dump(mode="json", exclude={"seed", "output", *TRACKERS})
        for variant, experiment in experiments.items()
    }
    text = json.dumps([settings, baseline, where, hardware(), torch.__version__], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
