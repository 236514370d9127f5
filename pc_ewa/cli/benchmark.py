"""`pc-ewa benchmark`: timings on this machine, and tests of reliability."""

from __future__ import annotations  # as in package.py

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pc_ewa.cli.command import Parser, add_config_overrides, command
from pc_ewa.errors import ConfigError

LARGEST_BATCH = 4096  # clouds in a call; 32 take 1 GB when the official size trains

DESCRIPTION = """\
Time `step`, a training step with and without EWA; `model`, the official-size classifier beside the same model written
as in the official code; `latency`, a trained model in several inference runtimes; `ops`, the point-cloud ops beside
other libraries; or `data`, the loading of batches. `reliability` disturbs runs and files."""

EPILOG = """\
examples:
  pc-ewa benchmark step quickstart
  pc-ewa benchmark step official_size --pairs 5
  pc-ewa benchmark step quickstart train.precision=bf16 device=cuda
  pc-ewa benchmark model
  pc-ewa benchmark model --threads 1 --rounds 3
  pc-ewa benchmark latency runs/quickstart
  pc-ewa benchmark latency runs/quickstart --threads 1 --batch 1 --rounds 25 --save latency.md
  pc-ewa benchmark ops
  pc-ewa benchmark ops --only knn --rounds 3
  pc-ewa benchmark ops --save performance.md
  pc-ewa benchmark data
  pc-ewa benchmark reliability --only hostile

`pc-ewa benchmark step --help` explains the options of `step`, and likewise for the others."""

DESCRIPTIONS = {
    "step": """\
A step is complete: drawing and augmenting the batch, forward, backward, clipping, AdamW, averaging. Dense and EWA steps
alternate, so that a drift in the speed of the machine affects both. The ratio is the median over the pairs.""",
    "model": """\
Times inference and training steps of the official 22.1 M classifier on the CPU: ours, with EWA and merged, in bf16
where the CPU has it, beside the official code's arithmetic in eager PyTorch with the same weights. All take turns.
Prints also the share of the measured peak, the time by kind of operation, and the memory of a step. Takes about 10
minutes; stop other work first.""",
    "latency": """\
Exports a trained model, measures its test metric, and times calls of one cloud and of 32: PyTorch eager, in bf16 and
compiled; onnxruntime exact and in 8 bits; OpenVINO, if it is installed, exact, and in bf16 if this CPU has it. All take
turns; ratios are medians over the rounds. Stop other work first.""",
    "ops": """\
In each round every contender runs once, in an order that rotates; ratios are medians over the rounds. Libraries that
are not installed are listed; requirements-peers.txt has them all. PC_EWA_OPS chooses our backend, OMP_NUM_THREADS the
threads of all. On 2 cores with everything installed it takes about 10 minutes; stop other work first.""",
    "data": """\
Writes a converted set of random clouds, as large as ModelNet40 with 8,192 points unless you say otherwise (605 MB in
the temporary folder), opens it in a fresh process, and draws batches from it: ours, Point-MAE's way, and a training
step of the official 22.1 M model take turns.""",
    "reliability": """\
Kills toy runs and starts them again (kill), flips bits in weights (flips), gives hostile files to commands (hostile),
damages files of shapes (fuzz), and watches the memory of a run (soak). Linux only; all of it takes half an hour.""",
}


def create_parser(what: str | None = None) -> Parser:
    """Return the parser of the command, or that of one of its benchmarks."""
    if what is None:
        parser = Parser(prog="pc-ewa benchmark", description=DESCRIPTION, epilog=EPILOG)
        parser.add_argument("what", choices=tuple(BENCHMARKS), help="what to time; its arguments follow")
        return parser
    parser = Parser(prog=f"pc-ewa benchmark {what}", description=DESCRIPTIONS[what])
    if what == "step":
        parser.add_argument("config", help="the experiment: a YAML file with an ewa section, or a bundled one's name")
        add_config_overrides(parser)
        parser.add_argument("--pairs", type=int, default=15, help="pairs of steps to time (default: 15)")
    elif what == "model":
        add_config_overrides(parser, "change keys of the config, as in train.batch_size=8")
        parser.add_argument("--rounds", type=int, default=5, help="how often each contender runs (default: 5)")
        parser.add_argument("--threads", type=int, action="append", help="threads, repeatable (default: 1 and 2)")
        parser.add_argument("--batch", type=int, action="append", help="clouds, repeatable (default: 1 and 32)")
        parser.add_argument("--save", type=Path, metavar="PAGE.md", help="also write a page of Markdown, replacing it")
    elif what == "latency":
        parser.add_argument("checkpoint", help="a checkpoint without mixtures, a run, a saved folder, or furniture")
        add_config_overrides(parser, "change keys of its config, as in data.root=/data")
        parser.add_argument("--config", metavar="CONFIG", help="the experiment, for checkpoints that do not hold one")
        parser.add_argument("--rounds", type=int, default=9, help="how often each contender runs (default: 9)")
        parser.add_argument("--threads", type=int, action="append", help="threads, repeatable (default: 1 and 2)")
        parser.add_argument("--samples", type=int, help="measure on as many test samples, spread evenly (default: all)")
        parser.add_argument("--batch", type=int, action="append", help="clouds, repeatable (default: 1 and 32)")
        parser.add_argument("--save", type=Path, metavar="PAGE.md", help="also write a page of Markdown, replacing it")
    elif what == "ops":
        parser.add_argument("--rounds", type=int, default=9, help="how often each contender runs (default: 9)")
        parser.add_argument("--only", metavar="SECTION", help="fps, knn, chamfer, grouping or precision (default: all)")
        parser.add_argument(
            "--device", default="auto", help="auto (a GPU if there is one), cpu or cuda (default: auto)"
        )
        parser.add_argument("--save", type=Path, metavar="PAGE.md", help="also write a page of Markdown, replacing it")
    elif what == "reliability":
        parser.add_argument("--only", metavar="PART", help="kill, flips, hostile, fuzz or soak (default: all)")
        parser.add_argument("--kills", type=int, default=60, help="runs to kill (default: 60)")
        parser.add_argument("--flips", type=int, default=200, help="bits to flip in each file (default: 200)")
        parser.add_argument("--cases", type=int, default=20_000, help="damaged shapes to read (default: 20000)")
        parser.add_argument("--minutes", type=float, default=15, help="how long the soak takes (default: 15)")
        parser.add_argument("--seed", type=int, default=0, help="decides what is drawn (default: 0)")
        parser.add_argument(
            "--save", type=Path, metavar="PAGE.md", help="also write a page, and its figures to PAGE.json; see --only"
        )
    else:
        parser.add_argument("--rounds", type=int, default=9, help="batches and steps to time (default: 9)")
        parser.add_argument("--shapes", type=int, default=12_311, help="clouds in the file (default: 12311)")
        parser.add_argument("--points", type=int, default=8192, help="points of each (default: 8192)")
    return parser


@command("benchmark", extra="train")
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    arguments = sys.argv[1:] if arguments is None else arguments
    what = create_parser().parse_args(arguments[:1]).what
    BENCHMARKS[what](create_parser(what).parse_intermixed_args(arguments[1:]), shlex.join(arguments))


def time_step(options: argparse.Namespace, _: str) -> None:
    """Check the arguments, then time dense and EWA steps."""
    from pc_ewa.benchmark.step import compare_steps
    from pc_ewa.config import load_experiment

    if options.pairs < 1:
        raise ConfigError(f"--pairs {options.pairs}; time at least one")
    experiment = load_experiment(options.config, options.overrides)
    if experiment.ewa is None:
        raise ConfigError(f"{options.config} has no ewa section to compare; add ewa.num_experts=4")
    print(compare_steps(experiment, options.pairs))


def time_model(options: argparse.Namespace, arguments: str) -> None:
    """Check the arguments, then time the official-size classifier."""
    check_page(options.save)
    check_counts(options, "rounds", "threads", "batch")
    from pc_ewa.benchmark.model import Plan, measure
    from pc_ewa.bundled import bundled
    from pc_ewa.config import load_experiment

    fixed = [f"data.root={bundled('datasets')}", "device=cpu", "train.precision=fp32"]
    experiment = load_experiment("official_size", [*fixed, *options.overrides])
    if experiment.model.name != "point_mae_classifier" or experiment.ewa is None:
        raise ConfigError("benchmark model needs model.name=point_mae_classifier and an ewa section; change other keys")
    if experiment.device != "cpu" or experiment.train.precision != "fp32":
        raise ConfigError("benchmark model runs on the CPU, also in bf16; leave out device and train.precision")
    plan = Plan(options.rounds, options.threads or (1, 2), options.batch or (1, 32))
    found = measure(experiment, plan)
    if options.save:
        options.save.write_text(found.page(f"pc-ewa benchmark {arguments}", plan.rounds), encoding="utf-8")


def check_counts(options: argparse.Namespace, *names: str) -> None:
    """Raise ConfigError for a number below 1, for more threads than cores, and for a batch that no memory holds."""
    cores = os.cpu_count() or 1
    for name in names:
        value = getattr(options, name)
        for number in value if isinstance(value, list) else [value]:
            if number is not None and number < 1:
                raise ConfigError(f"--{name} {number}; give at least 1")
            if number is not None and name == "threads" and number > cores:
                raise ConfigError(f"--threads {number}; this machine has {cores} cores")
            if number is not None and name == "batch" and number > LARGEST_BATCH:
                raise ConfigError(f"--batch {number}; give at most {LARGEST_BATCH} clouds")


def time_latency(options: argparse.Namespace, arguments: str) -> None:
    """Check the arguments, then export, measure and time."""
    check_page(options.save)
    check_counts(options, "rounds", "threads", "batch", "samples")
    from pc_ewa.benchmark.latency import Plan, measure, page
    from pc_ewa.export.source import load

    restored = load(options.checkpoint, options.config, [*options.overrides, "train.precision=fp32", "device=cpu"])
    restored.splits()  # fails before any work if the dataset is missing
    plan = Plan(options.rounds, options.threads or (1, 2), options.batch or (1, 32), samples=options.samples)
    found = measure(restored, plan)
    if options.save:
        options.save.write_text(page(found, f"pc-ewa benchmark {arguments}", plan), encoding="utf-8")


def check_page(page: Path | None) -> None:
    """Raise ConfigError for a page that cannot be written."""
    if page and page.is_dir():
        raise ConfigError(f"--save {page}: that is a folder; name a file in it")
    if page and not page.parent.is_dir():
        raise ConfigError(f"--save {page}: there is no folder {page.parent}; make it, or choose another")


def time_ops(options: argparse.Namespace, arguments: str) -> None:
    """Check the arguments, then run the sections. Each prints when it ends."""
    if options.rounds < 1:
        raise ConfigError(f"--rounds {options.rounds}; time at least one")
    page = options.save
    check_page(page)
    from pc_ewa.benchmark.ops import measure
    from pc_ewa.benchmark.report import write_page

    report = measure(options.only, options.rounds, options.device)
    if page:
        write_page(page, report, f"pc-ewa benchmark {arguments}")


def time_data(options: argparse.Namespace, _: str) -> None:
    """Check the arguments, then time opening a file, drawing batches and training steps."""
    if options.rounds < 1:
        raise ConfigError(f"--rounds {options.rounds}; time at least one")
    if options.shapes < 200 or options.points < 1200:
        raise ConfigError(f"--shapes {options.shapes} --points {options.points}; at least 200 and 1200")
    from pc_ewa.benchmark.data import Size, measure

    for target in measure(options.rounds, Size(options.shapes, options.points)):
        print(target.describe())


def disturb(options: argparse.Namespace, _: str) -> None:
    """Check the arguments, then measure the parts. Each prints its verdict when it ends."""
    if min(options.kills, options.flips, options.cases, options.minutes) <= 0:
        raise ConfigError("--kills, --flips, --cases and --minutes must be above 0")
    page = options.save
    check_page(page)
    from pc_ewa.benchmark.memory import can_weigh

    if not can_weigh():
        raise ConfigError("benchmark reliability needs Linux, whose /proc reports the memory of a process")
    from pc_ewa.benchmark.reliability import PARTS, Plan, measure, read, save, verdict
    from pc_ewa.validation import choose

    parts = (choose("part", options.only, {part: part for part in PARTS}),) if options.only else PARTS
    if page and page.with_suffix(".json").exists():
        read(page.with_suffix(".json"))  # fails now rather than after half an hour

    def tell(part: str, measured: dict[str, Any]) -> None:
        print(f"{part}: {verdict(part, measured['result'])}", flush=True)
        if page:
            save(page, part, measured)

    measure(parts, Plan(options.kills, options.flips, options.cases, options.minutes, options.seed), tell)


BENCHMARKS = {
    "step": time_step,
    "model": time_model,
    "latency": time_latency,
    "ops": time_ops,
    "data": time_data,
    "reliability": disturb,
}
