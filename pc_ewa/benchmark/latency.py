"""Latency of a trained model in PyTorch and in its exported files, each with the metric that it reaches."""

import datetime
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from pc_ewa.benchmark.contest import PAUSE, Contender, Score, Verdict, compete
from pc_ewa.benchmark.report import Table, Target, as_markdown, as_text, hardware, number
from pc_ewa.benchmark.ways import EAGER, WAYS, Files, cannot_run
from pc_ewa.eval.metric import ACCURACY, INSTANCE_MIOU
from pc_ewa.export import export_onnx, quantize
from pc_ewa.export.check import TOLERANCE
from pc_ewa.export.source import knowledge
from pc_ewa.export.source import measure as measure_on
from pc_ewa.export.trace import inputs, ready
from pc_ewa.package import version_of
from pc_ewa.progress import progress
from pc_ewa.train.restore import Restored

EXACT_TARGET, TARGET = 1.4, 2.3  # speed relative to eager at batch 1, of the fastest exact way and the fastest way
LOSS = 0.2  # points of the metric that the fastest way may lose


@dataclass
class Plan:
    """The settings of a measurement.

    Attributes:
        rounds: number of timings of each contender.
        threads: numbers of threads.
        batches: numbers of clouds in a call.
        ways: names in WAYS. Ways that cannot run here are left out.
        exported: the model as ONNX. None exports it.
        samples: number of test samples for the metric, spread evenly. None takes all.
        pause: seconds before each timing.
    """

    rounds: int = 9
    threads: Sequence[int] = (1, 2)
    batches: Sequence[int] = (1, 32)
    ways: Sequence[str] = tuple(WAYS)
    exported: Path | None = None
    samples: int | None = None
    pause: float = PAUSE


@dataclass
class Latency:
    """The results of a measurement.

    Attributes:
        title: of the table.
        metric: the name of the metric.
        quality: the metric by way.
        model: a description of the model and its training.
        missing: the ways that could not run.
        scores: timings by (threads, batch) and by way.
    """

    title: str
    metric: str
    quality: dict[str, float]
    model: str
    missing: set[str]
    scores: dict[tuple[int, int], dict[str, Score]] = field(default_factory=dict)

    def table(self) -> Table:
        """Return a table with a row for each way, and a column for each number of threads and clouds."""
        header = ["", *(f"{t} threads, batch {b}" if t > 1 else f"1 thread, batch {b}" for t, b in self.scores)]
        rows = [
            [way, *(_cell(scores, way) for scores in self.scores.values()), self._difference(way), f"{quality:.2%}"]
            for way, quality in self.quality.items()
        ]
        notes = [
            f"{way} failed at {threads} threads, batch {batch}: {score.problem}"
            for (threads, batch), scores in self.scores.items()
            for way, score in scores.items()
            if score.problem
        ]
        return Table(self.title, [*header, "scores off by", self.metric], rows, notes)

    def targets(self) -> list[Target]:
        """Return the targets at batch 1: the speed of the fastest exact way and of the fastest way, and its loss."""
        found = []
        for (threads, batch), scores in self.scores.items():
            if batch != 1:
                continue
            fastest = {exact: self._fastest(scores, exact) for exact in (True, False)}
            where = f"{threads} thread{'s' if threads > 1 else ''}, batch 1"
            for exact, bound in ((True, EXACT_TARGET), (False, TARGET)):
                way, ratio = fastest[exact]
                kind = "fastest exact way" if exact else "fastest way"
                found.append(Target(f"{where}, {kind}, times as fast as eager", ratio, bound, detail=f" ({way})"))
            way, _ = fastest[False]
            loss = 100 * (self.quality[EAGER] - self.quality[way])
            what = f"{where}, fastest way, loss of {self.metric}"
            found.append(Target(what, loss, LOSS, " points", at_most=True, detail=f" ({way})"))
        return found

    def left_out(self) -> str:
        """Return a line with the ways that could not run."""
        return f"Without {' and '.join(sorted(self.missing))}: not installed, or not on this CPU"

    def _fastest(self, scores: dict[str, Score], exact: bool) -> tuple[str, float]:
        """Return the fastest way and its speed relative to eager. With `exact`, only exact ways count."""
        running = {way: score for way, score in scores.items() if not score.problem}
        if exact:
            running = {way: score for way, score in running.items() if score.verdict and score.verdict.exact}
        return max(((way, scores[EAGER].ratio(score)) for way, score in running.items()), key=lambda item: item[1])

    def _difference(self, way: str) -> str:
        verdicts = [scores[way].verdict for scores in self.scores.values()]
        worst = max((float(verdict.note) for verdict in verdicts if verdict), default=None)
        return "-" if worst is None else f"{worst:.0e}"


def measure(restored: Restored, plan: Plan | None = None) -> Latency:
    """Export a trained model, measure its test metric in every way, and time all ways in turn. Prints the results.

    Args:
        restored: the trained model, with its experiment in fp32 on the CPU.
        plan: the settings. None takes the defaults.
    """
    plan = plan or Plan()
    model = ready(restored.model)
    count = restored.preprocessing.num_points
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    metric = ACCURACY if model.task == "classify" else INSTANCE_MIOU
    title = f"{type(model).__name__}, {parameters:.1f} M parameters, {count} points: ms a call (times as fast as eager)"
    missing = cannot_run() & {*plan.ways}
    ways = [way for way in plan.ways if way not in missing]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        files = _files(restored, plan, Path(folder))
        with threads_set(max(plan.threads)):
            quality = {}
            for way in progress(ways, "measuring on the test set"):
                score = measure_on(restored, WAYS[way](model, files, max(plan.threads)), "test", plan.samples)
                quality[way] = score.metrics()[metric.key]
        found = Latency(title, f"test {metric.title}", quality, _about(restored, score.samples), missing)
        for threads in plan.threads:
            with threads_set(threads):
                # Build the models inside: runtimes fix their number of threads when a session is created.
                models = {way: WAYS[way](model, files, threads) for way in ways}
                for batch in plan.batches:
                    found.scores[threads, batch] = _race(model, models, batch, count, plan)
    print(hardware(torch.device("cpu")), "\n")
    if missing:
        print(f"{found.left_out()}\n")
    print(as_text(found.table()))
    for target in found.targets():
        print(target.describe())
    return found


def _about(restored: Restored, samples: int) -> str:
    """Return a line about the training of the model and the number of test samples."""
    experiment = restored.experiment
    ewa = f"EWA with {experiment.ewa.arguments['num_experts']} experts" if experiment.ewa else "dense"
    unit, count = ("step", experiment.train.steps) if experiment.train.steps else ("epoch", experiment.train.epochs)
    duration = f"{count} {unit}{'' if count == 1 else 's'}"
    trained = f"{experiment.model.name}, {ewa}, trained for {duration} on {experiment.data.name}"
    return f"{trained}; measured on {samples} test samples"


def page(found: Latency, command: str, plan: Plan) -> str:
    """Return the results as a page of Markdown."""
    versions = ", ".join(f"{name} {version_of(name)}" for name in ("onnxruntime", "openvino") if version_of(name))
    return "\n".join(
        [
            "# How fast a trained model answers",
            "",
            f"Generated on {datetime.date.today().isoformat()} by the command below. Do not edit this page.",
            "",
            f"```bash\n{command}\n```",
            "",
            "Any trained model can be given, such as `furniture`, the small one of the package.",
            "`pc-ewa train finetune/modelnet40 train.epochs=1 output=runs/official_modelnet40` makes one of official",
            "size, for which the goals below are.",
            "",
            f"- Hardware: {hardware(torch.device('cpu'))}; {versions}",
            f"- Model: {found.model}",
            *([f"- {found.left_out()}"] if found.missing else []),
            f"- Medians over {plan.rounds} rounds (3 for what takes more than 2 s), in which all take turns; ratios",
            "  are medians over the rounds too. Grouping is a part of every call. 8 bits get the clouds of a batch one",
            "  by one, so that no answer depends on the others. A way is exact if its scores are",
            f"  those of eager PyTorch to {TOLERANCE:g}.",
            "",
            as_markdown(found.table()),
            "",
            "## What we hold ourselves to",
            "",
            *(f"- {target.describe()}" for target in found.targets()),
            "",
        ]
    )


def _files(restored: Restored, plan: Plan, folder: Path) -> Files:
    files = Files(plan.exported or folder / "exact.onnx", folder / "int8.onnx")
    if not plan.exported:
        export_onnx(restored.model, files.exact, **knowledge(restored))
    quantize(files.exact, files.int8)
    return files


def _race(model: nn.Module, models: dict[str, nn.Module], batch: int, count: int, plan: Plan) -> dict[str, Score]:
    clouds = torch.randn(batch, count, 3, generator=torch.Generator().manual_seed(0))
    clouds /= clouds.norm(dim=2).amax(dim=1)[:, None, None]
    arguments = inputs(model, clouds)
    expected = model(*arguments)

    def judge(scores: Tensor) -> Verdict:
        difference = float((scores - expected).abs().max())
        return Verdict(difference <= TOLERANCE * max(1.0, float(expected.abs().max())), f"{difference:g}")

    contenders = [Contender(way, partial(model, *arguments)) for way, model in models.items()]
    scores = compete(contenders, plan.rounds, torch.device("cpu"), judge, plan.pause)
    return {score.contender.name: score for score in scores}


def _cell(scores: dict[str, Score], way: str) -> str:
    score, eager = scores[way], scores[EAGER]
    if score.problem:
        return "failed"
    return number(score.median) + ("" if score is eager else f" ({number(eager.ratio(score))}x)")


@contextmanager
def threads_set(count: int) -> Iterator[None]:
    """Run torch on `count` threads inside a `with` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
