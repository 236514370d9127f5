"""Training steps and inference of the official-size classifier, in our code and written as in the official code."""

import copy
import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from pc_ewa.benchmark.contest import PAUSE, Contender, Score, Verdict, compete, ops_backend
from pc_ewa.benchmark.latency import threads_set
from pc_ewa.benchmark.memory import can_weigh, peak_of
from pc_ewa.benchmark.official_style import OfficialClassifier
from pc_ewa.benchmark.report import Table, Target, as_markdown, as_text, hardware, number
from pc_ewa.config import Experiment
from pc_ewa.ewa import merge_experts, upcycle
from pc_ewa.heap import give_freed_memory_back, keep_freed_memory
from pc_ewa.models import create_model
from pc_ewa.train.distributed import World
from pc_ewa.train.loop import train_step
from pc_ewa.train.setup import Setup, build

OFFICIAL, OFFICIAL_KEPT = "official style", "official style, freed memory kept"
DENSE, EWA, SAVING = "ours", "ours, EWA", "ours, checkpoint_activations"
MERGED, AVERAGING, PEAK = "ours, merged from experts", "averaging of the experts alone", "matrix product"
BF16 = ", bf16"
NUM_CLASSES = 40
SIDE = 2048  # of the matrices whose product measures the peak
KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "linear"),
    "attention": ("attention",),
    "tail of the patch encoder: products apart": ("NormRelu", "Largest", "Tail"),
    "other norms": ("norm",),
    "GELU": ("gelu",),
    "optimizer": ("adamw", "AdamW"),
    "points: sampling and neighbours": ("pc_ewa::",),
    "copies and casts": ("copy_", "cat", "fill_"),
}


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


def has_bf16() -> bool:
    """Return True for a CPU with instructions for bf16. Without AVX-512, bf16 is several times slower than fp32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


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
    memory = [_memory(_steps(experiment, world))] if can_weigh() else []
    for threads in plan.threads:
        with threads_set(threads):
            word = f"{threads} thread{'s' if threads > 1 else ''}"
            for batch in plan.batches:
                _inference(found, experiment, batch, word, plan)
            _training(found, experiment, world, word, plan)
    keep_freed_memory()
    found.tables += [_profile(_steps(experiment, world)[DENSE], "a training step"), *memory]
    give_freed_memory_back()
    print(found.title, "\n")
    for table in found.tables:
        print(as_text(table))
    for line in (*found.notes, *(target.describe() for target in found.targets)):
        print(line)
    return found


def page(found: Found, command: str, plan: Plan) -> str:
    """Return the results as a page of Markdown."""
    return "\n".join(
        [
            "# How fast the official-size classifier trains and answers",
            "",
            f"Generated on {datetime.date.today().isoformat()} by the command below. Do not edit this page.",
            "",
            f"```bash\n{command}\n```",
            "",
            f"- Hardware: {found.title}",
            "- *Official style* is the arithmetic of the official Point-MAE code in eager PyTorch, in our words:",
            "  `pc_ewa/benchmark/official_style.py`, with the same weights and the same logits. The grouping is ours,",
            "  as the official one needs CUDA. It runs as PyTorch does by default, and once more with freed memory",
            "  kept, as our trainings keep it (`pc_ewa/heap.py`); the ratio that is left then is the model's own.",
            f"- Medians over {plan.rounds} rounds (3 for what takes more than 2 s), in which all take turns; ratios",
            "  are medians over the rounds too. A step is all of it: drawing, augmenting, forward, backward, clipping,",
            "  AdamW, averaging. The peak is that of a product of matrices of 2,048 rows and columns, which takes",
            "  turns too.",
            *(f"- {note}" for note in found.notes),
            "",
            *(f"{as_markdown(table)}\n" for table in found.tables),
            "## What we hold ourselves to",
            "",
            *(f"- {target.describe()}" for target in found.targets),
            "",
        ]
    )


def _inference(found: Found, experiment: Experiment, batch: int, word: str, plan: Plan) -> None:
    """Time inference on a batch of clouds, and add a table and targets."""
    model, official = _models(experiment)
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
    flops = _operations(lambda: model(clouds))
    title = f"Inference, {word}, {_clouds(batch)} of {experiment.data.num_points} points"
    found.tables.append(_table(title, scores, flops))
    if batch > 1:
        goals = {DENSE: 1.45, DENSE + BF16: 3.2}
        found.targets += _targets(f"Inference, {word}, batch {batch}", scores, goals)


def _training(found: Found, experiment: Experiment, world: World, word: str, plan: Plan) -> None:
    """Time training steps, and add a table and targets."""
    steps = _steps(experiment, world)
    calls: dict[str, tuple[bool, Callable[[], Any]]] = {
        name: (name != OFFICIAL, step) for name, step in steps.items() if name != SAVING
    }
    averager = _setup(experiment, world).averager
    assert averager is not None
    calls[AVERAGING] = (True, averager.step)
    scores = _race(calls, plan)
    flops = _operations(steps[DENSE])
    title = f"A training step, {word}, batch {experiment.train.batch_size} of {experiment.data.num_points} points"
    found.tables.append(_table(title, scores, flops))
    found.targets += _targets(f"Training, {word}", scores, {DENSE: 1.35, DENSE + BF16: 3.0})
    for kind in ("", BF16):
        if EWA + kind in scores:
            what = f"An EWA step{kind}, {word}, in dense ones"
            found.targets.append(Target(what, scores[EWA + kind].ratio(scores[DENSE + kind]), 1.05, at_most=True))
    share = 100 * scores[AVERAGING].ratio(scores[EWA])
    found.targets.append(Target(f"Averaging, {word}, share of a step", share, 1, " %", at_most=True))


def _steps(experiment: Experiment, world: World) -> dict[str, Callable[[], Any]]:
    """Return a function for a training step of each kind."""
    dense = experiment.model_copy(update={"ewa": None})
    saving = _with(dense, checkpoint_activations=True)
    official = _official(dense, world)
    steps = {
        OFFICIAL: _step(official, dense, world),
        OFFICIAL_KEPT: _step(official, dense, world),
        **{
            name: _step(_setup(one, world), one, world)
            for name, one in ((DENSE, dense), (EWA, experiment), (SAVING, saving))
        },
    }
    if has_bf16():
        for name, one in ((DENSE, _with(dense, precision="bf16")), (EWA, _with(experiment, precision="bf16"))):
            steps[name + BF16] = _step(_setup(one, world), one, world)
    return steps


def _with(experiment: Experiment, **changes: Any) -> Experiment:
    return experiment.model_copy(update={"train": experiment.train.model_copy(update=changes)})


def _setup(experiment: Experiment, world: World) -> Setup:
    setup = build(experiment, world)
    setup.model.train()
    return setup


def _official(experiment: Experiment, world: World) -> Setup:
    """Set up the same run with the official style's model, and with AdamW in torch's default implementation."""
    setup = build(experiment, world)
    model = OfficialClassifier(setup.model_arguments["num_classes"], experiment.model.arguments)
    model.load_state_dict(setup.model.state_dict())
    return setup._replace(model=model.train(), optimizer=torch.optim.AdamW(model.parameters(), weight_decay=0.05))


def _step(setup: Setup, experiment: Experiment, world: World) -> Callable[[], Any]:
    return partial(train_step, setup, experiment, world, setup.model, 0)


def _models(experiment: Experiment) -> tuple[nn.Module, nn.Module]:
    """Return our model and the official style's, with the same weights."""
    torch.manual_seed(0)
    model = create_model(experiment.model.name, num_classes=NUM_CLASSES, **experiment.model.arguments).eval()
    official = OfficialClassifier(NUM_CLASSES, experiment.model.arguments).eval()
    official.load_state_dict(model.state_dict())
    return model, official


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


def _operations(call: Callable[[], Any]) -> float:
    """Count the floating-point operations of the matrix products and the attention of a call."""
    # In plain torch: the counter does not see what the fused layers compute.
    with FlopCounterMode(display=False) as counter, ops_backend("reference"):
        call()
    return float(counter.get_total_flops())


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


def _profile(call: Callable[[], Any], what: str) -> Table:
    """Return a table of the time of a call by kind of operation."""
    call()
    with profile() as recorded:
        call()
    kinds = dict.fromkeys([*KINDS, "all else"], 0.0)
    for row in recorded.key_averages():
        kind = next((kind for kind, words in KINDS.items() if _is_of(row.key, words)), "all else")
        kinds[kind] += row.self_cpu_time_total / 1e3
    total = sum(kinds.values())
    rows = [[kind, number(spent), f"{100 * spent / total:.1f} %"] for kind, spent in kinds.items()]
    return Table(f"Where {what} of ours goes", ["", "ms", "share"], sorted(rows, key=lambda row: -kinds[row[0]]))


def _is_of(key: str, words: tuple[str, ...]) -> bool:
    """Return True if an operator's name is one of `words`, or contains one that is not the name of a matrix product."""
    # Matrix products match by their whole name: "mm" is also a part of "addmm", and "linear" of other operators.
    plain = key.removeprefix("aten::")
    return plain in words or any(word in plain for word in words if word not in KINDS["matrix products"])


def _memory(steps: dict[str, Callable[[], Any]]) -> Table:
    """Return a table of the peak memory of a training step of each kind."""
    rows = []
    for name, step in steps.items():
        if name == OFFICIAL_KEPT:
            continue
        give_freed_memory_back(at_once_from=2**16)  # so that what is in use is what is counted
        step()  # the state of its optimizer is there now
        rows.append([name, f"{peak_of(step):.0f}"])
    return Table("Peak memory of a training step, beyond weights and optimizer", ["", "MB"], rows)


def _clouds(count: int) -> str:
    return f"{count} cloud{'s' if count > 1 else ''}"
