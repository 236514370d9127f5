"""Training steps and inference of the official-size classifier, in our code and written as in the official code."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pc_ewa.benchmark.contest import PAUSE, Contender, Score, Verdict, compete
from pc_ewa.benchmark.latency import threads_set
from pc_ewa.benchmark.memory import can_weigh
from pc_ewa.benchmark.model_page import memory_table, page, profile_table
from pc_ewa.benchmark.model_steps import (
    BF16,
    DENSE,
    EWA,
    OFFICIAL,
    OFFICIAL_KEPT,
    SAVING,
    models,
    training_steps,
)
from pc_ewa.benchmark.report import Table, Target, as_text, hardware, number
from pc_ewa.config import Experiment
from pc_ewa.ewa import merge_experts, upcycle
from pc_ewa.flops import flops_of
from pc_ewa.heap import give_freed_memory_back, keep_freed_memory
from pc_ewa.train.distributed import World, has_bf16
from pc_ewa.train.setup import build

MERGED, AVERAGING, PEAK = "ours, merged from experts", "averaging of the experts alone", "matrix product"
SIDE = 2048  # of the matrices whose product measures the peak


@dataclass
class Plan:
    """The settings of a measurement.

    Attributes:
        rounds: number of timings of each contender.
        threads: numbers of threads.
        batches: numbers of clouds at inference.
        pause: seconds before each timing.
    """

    rounds: int = 5
    threads: Sequence[int] = (1, 2)
    batches: Sequence[int] = (1, 32)
    pause: float = PAUSE


@dataclass
class Found:
    """The results of a measurement.

    Attributes:
        title: the hardware.
        tables: in the order of the page.
        targets: each with its measured value.
        notes: remarks, a line each.
    """

    title: str
    tables: list[Table] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def page(self, command: str, rounds: int) -> str:
        """Return the results as a page of Markdown."""
        return page(self.title, self.tables, self.targets, self.notes, command, rounds)


def measure(experiment: Experiment, plan: Plan | None = None) -> Found:
    """Time training steps and inference, count operations and measure memory. Prints the results.

    Args:
        experiment: a Point-MAE classifier of official size with an ewa section, in fp32, on the CPU.
        plan: the settings. None takes the defaults.
    """
    plan = plan or Plan()
    world = World(0, 1, torch.device("cpu"))
    found = Found(hardware(world.device))
    if not has_bf16():
        found.notes.append("Without bf16: this CPU has no instructions for it, and emulates it several times slower.")
    # First: later the heap has free memory left over, from which steps would take without being noticed.
    memory = [memory_table(training_steps(experiment, world))] if can_weigh() else []
    for threads in plan.threads:
        with threads_set(threads):
            word = f"{threads} thread{'s' if threads > 1 else ''}"
            for batch in plan.batches:
                _inference(found, experiment, batch, word, plan)
            _training(found, experiment, world, word, plan)
    keep_freed_memory()
    found.tables += [profile_table(training_steps(experiment, world)[DENSE], "a training step"), *memory]
    give_freed_memory_back()
    print(found.title, "\n")
    for table in found.tables:
        print(as_text(table))
    for line in (*found.notes, *(target.describe() for target in found.targets)):
        print(line)
    return found


def _inference(found: Found, experiment: Experiment, batch: int, word: str, plan: Plan) -> None:
    """Time inference on a batch of clouds, and add a table and targets."""
    model, official = models(experiment)
    merged = copy.deepcopy(model)
    merge_experts(upcycle(merged.train(), num_experts=4)).eval()
    clouds = torch.randn(batch, experiment.data.num_points, 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = official(clouds)

    def judge(logits: Any) -> Verdict:
        # Logits must be close even in bf16. The result of the matrix product, which measures the peak, is not judged.
        same = logits.shape == (SIDE, SIDE) or float((logits.float() - expected).abs().max()) < 0.1
        return Verdict(same, "")

    calls: dict[str, tuple[bool, Callable[[], Any]]] = {
        OFFICIAL: (False, partial(_answer, official, clouds)),
        OFFICIAL_KEPT: (True, partial(_answer, official, clouds)),
        DENSE: (True, partial(_answer, model, clouds)),
        MERGED: (True, partial(_answer, merged, clouds)),
    }
    if has_bf16():
        calls[DENSE + BF16] = (True, partial(_answer, model, clouds, bf16=True))
    scores = _race(calls, plan, judge)
    flops = flops_of(partial(_answer, model, clouds))
    title = f"Inference, {word}, {_clouds(batch)} of {experiment.data.num_points} points"
    found.tables.append(_table(title, scores, flops))
    if batch > 1:
        goals = {DENSE: 1.45, DENSE + BF16: 3.2}
        found.targets += _targets(f"Inference, {word}, batch {batch}", scores, goals)


def _training(found: Found, experiment: Experiment, world: World, word: str, plan: Plan) -> None:
    """Time training steps, and add a table and targets."""
    steps = training_steps(experiment, world)
    calls: dict[str, tuple[bool, Callable[[], Any]]] = {
        name: (name != OFFICIAL, step) for name, step in steps.items() if name != SAVING
    }
    averager = build(experiment, world).averager
    assert averager is not None
    averager.detach()  # it is called alone
    calls[AVERAGING] = (True, averager.step)
    scores = _race(calls, plan)
    flops = flops_of(steps[DENSE])
    title = f"A training step, {word}, batch {experiment.train.batch_size} of {experiment.data.num_points} points"
    found.tables.append(_table(title, scores, flops))
    found.targets += _targets(f"Training, {word}", scores, {DENSE: 1.35, DENSE + BF16: 3.0})
    for kind in ("", BF16):
        if EWA + kind in scores:
            what = f"An EWA step{kind}, {word}, in dense ones"
            found.targets.append(Target(what, scores[EWA + kind].ratio(scores[DENSE + kind]), 1.05, at_most=True))
    share = 100 * scores[AVERAGING].ratio(scores[EWA])
    found.targets.append(Target(f"Averaging, {word}, share of a step", share, 1, " %", at_most=True))


@torch.inference_mode()
def _answer(model: nn.Module, clouds: Tensor, bf16: bool = False) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return model(clouds)


def _race(
    calls: dict[str, tuple[bool, Callable[[], Any]]],
    plan: Plan,
    judge: Callable[[Any], Verdict] = lambda result: Verdict(True, ""),
) -> dict[str, Score]:
    """Time calls in turn, each with or without keeping freed memory, beside a matrix product that measures the peak."""
    left, right = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    calls = {**calls, PEAK: (True, lambda: left @ right)}
    contenders = [Contender(name, partial(_with_memory, kept, call)) for name, (kept, call) in calls.items()]
    scores = compete(contenders, plan.rounds, torch.device("cpu"), judge, plan.pause)
    give_freed_memory_back()
    for score in scores:
        if score.problem or (score.verdict and not score.verdict.exact):
            raise RuntimeError(f"{score.contender.name}: {score.problem or 'other logits than the official style'}")
    return {score.contender.name: score for score in scores}


def _with_memory(kept: bool, call: Callable[[], Any]) -> Any:
    # The setting of the allocator is global, and contenders take turns: set it before every call.
    (keep_freed_memory if kept else give_freed_memory_back)()
    return call()


def _table(title: str, scores: dict[str, Score], flops: float) -> Table:
    peak = 2 * SIDE**3 / scores[PEAK].median / 1e6  # GFLOP/s
    rows = []
    for name, score in scores.items():
        if name in (PEAK, AVERAGING):
            continue
        share = 100 * flops / score.median / 1e6 / peak
        ratios = [number(scores[other].ratio(score)) + "x" for other in (OFFICIAL, OFFICIAL_KEPT)]
        rows.append([name, number(score.median), *ratios, f"{share:.0f} %"])
    header = ["", "ms", "times as fast as official style", "as that with memory kept", "share of peak"]
    notes = [f"{flops / 1e9:.0f} GFLOP; the peak was {peak:.0f} GFLOP/s."]
    return Table(title, header, rows, notes)


def _targets(what: str, scores: dict[str, Score], goals: dict[str, float]) -> list[Target]:
    return [
        Target(f"{what}, {name}, times as fast as official style", scores[OFFICIAL].ratio(scores[name]), bound)
        for name, bound in goals.items()
        if name in scores
    ]


def _clouds(count: int) -> str:
    return f"{count} cloud{'s' if count > 1 else ''}"
