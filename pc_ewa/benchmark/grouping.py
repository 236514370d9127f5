"""The cost of grouping a batch into patches, beside a training step of the same model."""

from functools import partial
from pathlib import Path

import torch

from pc_ewa import ops
from pc_ewa.benchmark.contest import PAUSE, Contender, compete, ours
from pc_ewa.benchmark.report import Report, Table, Target, number
from pc_ewa.benchmark.step import timed_step
from pc_ewa.bundled import bundled
from pc_ewa.config import Experiment, load_experiment
from pc_ewa.train.distributed import join_world

LIMIT = 2.0  # percent of a step in fp32


def grouping(report: Report, config: str | Path, pause: float | None) -> None:
    """Time dense training steps in fp32 and bf16, and the grouping of one batch, in turn."""
    fp32, bf16 = (load(config, report.device, precision) for precision in ("fp32", "bf16"))
    batch, count = fp32.train.batch_size, fp32.data.num_points
    groups, size = (fp32.model.arguments[name] for name in ("num_groups", "group_size"))
    points = torch.randn(batch, count, 3, generator=torch.Generator().manual_seed(0)).to(report.device)
    with join_world(str(report.device)) as world:
        steps = []
        for experiment in (fp32, bf16):
            step = timed_step(experiment, world)
            steps.append(Contender(experiment.train.precision, partial(step, 0)))
        contenders = [*ours(lambda: ops.group(points, groups, size)), *steps]
        own, reference, *timed = compete(
            contenders, report.rounds, report.device, pause=PAUSE if pause is None else pause
        )
    rows = [
        [f"step in {score.contender.name}", number(score.median), *(
            f"{number(one.median)} ({100 * one.ratio(score):.2f} %)" for one in (own, reference)
        )]
        for score in timed if not score.problem
    ]  # fmt: skip
    title = f"Grouping, {batch}x{count} -> {groups} patches of {size}: ms (share of a training step, {fp32.model.name})"
    report.tables["grouping"] = [Table(title, ["", "step", own.contender.name, reference.contender.name], rows)]
    share = None if own.problem or timed[0].problem else 100 * own.ratio(timed[0])
    report.targets.append(Target("Grouping, share of an fp32 training step", share, LIMIT, " %", at_most=True))


def load(config: str | Path, device: torch.device, precision: str) -> Experiment:
    """Load an experiment without experts, on the bundled data."""
    changes = ["ewa=null", f"train.precision={precision}", f"device={device}", f"data.root={bundled('datasets')}"]
    return load_experiment(config, changes)
