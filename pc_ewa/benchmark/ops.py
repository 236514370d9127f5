"""Our point-cloud ops beside other libraries: cases, targets and tables."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pc_ewa import ops
from pc_ewa.benchmark import precision
from pc_ewa.benchmark import report as reports
from pc_ewa.benchmark.chamfer_peers import CHAMFER, both_ways
from pc_ewa.benchmark.contest import OURS, Contender, Score, Verdict, compete, ours
from pc_ewa.benchmark.exact import (
    exact_chamfer,
    exact_distances,
    judge_chamfer,
    judge_fps,
    judge_knn,
    percent,
    relative,
)
from pc_ewa.benchmark.grouping import grouping
from pc_ewa.benchmark.peers import FPS, KNN, Peer, contenders
from pc_ewa.benchmark.report import Report, Table, Target, number
from pc_ewa.train.distributed import choose_device
from pc_ewa.validation import choose


class Case(NamedTuple):
    """One size of inputs.

    Attributes:
        sizes: numbers of clouds and points, as described in `Plan`.
        target: the wanted speed relative to the fastest peer. None sets no target.
    """

    sizes: tuple[int, ...]
    target: float | None = None


class Plan(NamedTuple):
    """All cases by section."""

    fps: Sequence[Case] = (  # clouds, points, chosen
        Case((32, 1024, 64), 2),
        Case((32, 1024, 128), 2),
        Case((32, 8192, 1024), 2),
        Case((1, 100_000, 4096), 1.5),
    )
    knn: Sequence[Case] = (Case((32, 64, 1024), 2), Case((1, 1024, 8192)), Case((32, 1024, 8192), 2))  # queries, points
    k: int = 32
    chamfer: Sequence[Case] = (Case((1216, 32), 2), Case((8, 2048), 4))  # clouds, points of each side
    weighed: Sequence[str] = tuple(precision.CHAMFER)  # implementations whose memory is measured
    precision: tuple[int, int] = (1, 2048)  # clouds, points of each side
    config: str | Path = "official_size"
    pause: float | None = None  # seconds before each timing; None takes the default


class Race(NamedTuple):
    """One section of the benchmark.

    Attributes:
        title: of the section.
        name: returns the name of a case from its sizes.
        peers: the other libraries.
        inputs: returns the inputs from device, plan and sizes.
        ours: our op, called with the inputs.
        judge: returns the judge of results from the inputs.
        exact_only: True if the target compares with exact peers only.
    """

    title: str
    name: Callable[..., str]
    peers: Sequence[Peer]
    inputs: Callable[..., tuple[Any, ...]]
    ours: Callable[..., Any]
    judge: Callable[..., Callable[[Any], Verdict]]
    exact_only: bool = False


def measure(only: str | None, rounds: int, device: str, plan: Plan | None = None) -> Report:
    """Run one section or all, and print each when it ends.

    Raises:
        ConfigError: an unknown section, or a device or PC_EWA_OPS that this machine does not support.
    """
    plan = plan or Plan()
    sections = {only: choose("section", only, SECTIONS)} if only else SECTIONS
    chosen = choose_device(device)
    report = Report(chosen, rounds, {name: [] for name in SECTIONS})
    print(f"{reports.hardware(chosen)}\nours: {reports.backend(chosen)}\n", flush=True)
    for name, run in sections.items():
        run(report, plan)
        print("\n".join(map(reports.as_text, report.tables[name])), flush=True)
    for target in report.targets:
        print(target.describe())
    print(f"libraries: {reports.packages(report)}")
    return report


def run_races(section: str, race: Race, report: Report, plan: Plan, cases: Sequence[Case]) -> None:
    """Time the cases of an op and add one table to the report, with a column for each case."""
    columns: dict[str, list[Score]] = {}
    for case in cases:
        title = race.name(*case.sizes)
        inputs = race.inputs(report.device, plan, *case.sizes)
        peers, missing = contenders(race.peers, report.device, *inputs)
        everyone: list[Contender] = [*ours(partial(race.ours, *inputs)), *peers]
        pause = {} if plan.pause is None else {"pause": plan.pause}
        scores = compete(everyone, report.rounds, report.device, race.judge(*inputs), **pause)
        columns[title] = scores
        report.missing |= missing
        report.used |= {score.contender.pip for score in scores if score.contender.pip and not score.problem}
        if case.target:
            report.targets.append(race_target(f"{race.title}, {title}", scores, case.target, race.exact_only))
    report.tables[section] = [race_table(f"{race.title}: ms (times as long as ours)", columns)]


def race_target(what: str, scores: Sequence[Score], bound: float, exact_only: bool) -> Target:
    """Return the target for our speed relative to the fastest peer, with its measured value."""
    own = next(score for score in scores if score.contender.name == OURS)
    peers = [score for score in scores if score.contender.peer and not score.problem]
    peers = [score for score in peers if not exact_only or (score.verdict and score.verdict.exact)]
    what = f"{what}, beside the fastest {'exact ' if exact_only else ''}peer"
    if own.problem or not peers:
        return Target(what, None, bound, detail=f": {own.problem or 'no such peer is installed'}")
    fastest = min(peers, key=lambda score: score.ratio(own))
    return Target(what, fastest.ratio(own), bound, detail=f" ({fastest.contender.name})")


def race_table(title: str, columns: dict[str, list[Score]]) -> Table:
    """Return a table with a row for each contender: a cell for each case, and its exactness."""
    rows, notes = [], []
    for scores in zip(*columns.values(), strict=True):
        name = scores[0].contender.name
        cells = [cell(score, next(s for s in column if s.contender.name == OURS))
                 for score, column in zip(scores, columns.values(), strict=True)]  # fmt: skip
        rows.append([name, *cells, exactness(dict(zip(columns, scores, strict=True)))])
        notes += [f"{name} failed on {case}: {score.problem}"
                  for case, score in zip(columns, scores, strict=True) if score.problem]  # fmt: skip
    return Table(title, ["", *columns, "exact"], rows, notes)


def cell(score: Score, own: Score) -> str:
    """Format the milliseconds of a contender. For others than ours, add the ratio to ours."""
    if score.problem:
        return "failed"
    if score is own or own.problem:
        return number(score.median)
    return f"{number(score.median)} ({number(score.ratio(own))}x)"


def exactness(scores: dict[str, Score]) -> str:
    """Return the common note of all cases, or else the notes of the inexact cases with their names."""
    notes = {case: score.verdict.note for case, score in scores.items() if score.verdict}
    if len(set(notes.values())) <= 1:
        return next(iter(notes.values()), "-")
    wrong = {case: note for case, note in notes.items() if note.startswith("no")}
    return "; ".join(f"{note} ({case})" for case, note in (wrong or notes).items())


def random_clouds(device: torch.device, *shape: int, seed: int = 0) -> Tensor:
    """Return normally distributed points (*shape, 3), the same on every machine."""
    # Draw on the CPU and move: the generators of CPU and CUDA differ.
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed)).to(device)


def knn_inputs(device: torch.device, plan: Plan, clouds: int, queries: int, count: int) -> tuple[Tensor, Tensor, int]:
    """Return random clouds and their first points as queries, since the centers of patches are points too."""
    points = random_clouds(device, clouds, count)
    return points[:, :queries].contiguous(), points, plan.k


def knn_judge(queries: Tensor, points: Tensor, k: int) -> Callable[[Tensor], Verdict]:
    """Return the judge of neighbours. It computes the exact distances once for all contenders."""
    distances = exact_distances(queries, points, k)
    return lambda index: judge_knn(index, queries, points, distances)


def chamfer_judge(x: Tensor, y: Tensor) -> Callable[[Tensor], Verdict]:
    """Return the judge of Chamfer distances. It computes the exact value once for all contenders."""
    value = exact_chamfer(x, y)
    return lambda result: judge_chamfer(result, value)


FPS_RACE = Race(
    "FPS",
    lambda clouds, count, n: f"{clouds}x{count}->{n}",
    FPS,
    lambda device, plan, clouds, count, n: (random_clouds(device, clouds, count), n),
    ops.farthest_point_sample,
    lambda points, n: lambda index: judge_fps(index, points),
    exact_only=True,
)
KNN_RACE = Race(
    "kNN",
    lambda clouds, queries, count: f"{clouds}x({queries} in {count})",
    KNN,
    knn_inputs,
    lambda *inputs: ops.knn(*inputs)[1],
    knn_judge,
)
CHAMFER_RACE = Race(
    "Chamfer, forward and backward",
    lambda clouds, count: f"{clouds}x({count} vs {count})",
    CHAMFER,
    lambda device, plan, *sizes: (random_clouds(device, *sizes), random_clouds(device, *sizes, seed=1)),
    lambda x, y: both_ways(ops.chamfer_distance, x, y)[0](),
    chamfer_judge,
)


def run_chamfer(report: Report, plan: Plan) -> None:
    """Time all cases, then measure the memory of the last case."""
    run_races("chamfer", CHAMFER_RACE, report, plan, plan.chamfer)
    clouds, count = plan.chamfer[-1].sizes
    peaks = precision.memory((clouds, count), report.device, plan.weighed)
    rows = [[name, f"{megabytes:.1f}"] for name, megabytes in peaks.items()]
    title = f"Chamfer, forward and backward, {CHAMFER_RACE.name(clouds, count)}: peak memory beyond the clouds"
    report.tables["chamfer"].append(Table(title, ["", "MB"], rows, () if rows else ("Not measured: needs Linux.",)))


def run_precision(report: Report, plan: Plan) -> None:
    """Add a table: the share of neighbours found and the relative error of Chamfer, centred and off centre."""
    found = precision.precision(*plan.precision, plan.k, report.device)
    header = [
        f"{what}, at {offset}" for what in ("neighbours found", "error of Chamfer") for offset in precision.OFFSETS
    ]
    rows = [[name, *map(percent, one.neighbours), *map(relative, one.chamfer)] for name, one in found.items()]
    title = f"Precision, {plan.precision[1]} points of unit scale about (0, 0, 0) and about (1000, 1000, 1000)"
    report.tables["precision"] = [Table(title, ["", *header], rows)]


SECTIONS: dict[str, Callable[[Report, Plan], None]] = {
    "fps": lambda report, plan: run_races("fps", FPS_RACE, report, plan, plan.fps),
    "knn": lambda report, plan: run_races("knn", KNN_RACE, report, plan, plan.knn),
    "chamfer": run_chamfer,
    "grouping": lambda report, plan: grouping(report, plan.config, plan.pause),
    "precision": run_precision,
}
