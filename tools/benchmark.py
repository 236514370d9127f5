"""Time `step`, a training step with EWA and without, `ops`, the point-cloud ops beside other libraries, or `data`."""

import argparse
import shlex
import sys
from pathlib import Path

from pc_ewa.errors import ConfigError, exit_on_error

EPILOG = """\
examples:
  python tools/benchmark.py step configs/quickstart.yaml
  python tools/benchmark.py step configs/official_size.yaml --pairs 5
  python tools/benchmark.py step configs/quickstart.yaml train.precision=bf16 device=cuda
  python tools/benchmark.py ops
  python tools/benchmark.py ops --only knn --rounds 3
  python tools/benchmark.py ops --save docs/performance.md
  python tools/benchmark.py data

`python tools/benchmark.py step --help`, `ops --help` and `data --help` explain their options."""

STEP = """\
A step is all of it: drawing and augmenting the batch, forward, backward, clipping, AdamW, averaging. Dense and EWA
steps take turns, so that a drift of the speed of the machine falls on both; the ratio is the median over the pairs."""

OPS = """\
In each round every contender runs once, in an order that rotates; ratios are medians over the rounds. Libraries that
are not installed are listed; requirements-peers.txt has them all. PC_EWA_OPS chooses our backend, OMP_NUM_THREADS the
threads of all. On 2 cores with everything installed it takes about 10 minutes; stop other work on the machine first."""

DATA = """\
Writes a converted set of random clouds, as large as ModelNet40 with 8,192 points unless you say otherwise (605 MB in
the temporary folder), opens it in a fresh process, and draws batches from it: ours, Point-MAE's way, and a training
step of the official 22.1 M model take turns."""


@exit_on_error
def main(arguments: list[str] | None = None) -> None:
    """Parse, measure, print."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = create_parser()
    # Overrides may stand before and after --pairs, but argparse takes those of a subcommand in one run only.
    options, rest = parser.parse_known_args(arguments)
    if rest and (options.what != "step" or any(argument.startswith("-") for argument in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if options.what == "step":
        time_step(options.config, [*options.overrides, *rest], options.pairs)
    elif options.what == "ops":
        time_ops(options, arguments)
    else:
        time_data(options)


def create_parser() -> argparse.ArgumentParser:
    """Describe the subcommands."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=style)
    commands = parser.add_subparsers(dest="what", required=True, metavar="step|ops|data", help="what to time")
    step = commands.add_parser("step", description=STEP, formatter_class=style)
    step.add_argument("config", help="the experiment, a YAML file with an ewa section")
    step.add_argument("overrides", nargs="*", metavar="key=value", help="change keys of the config")
    step.add_argument("--pairs", type=int, default=15, help="pairs of steps to time (default: 15)")
    ops = commands.add_parser("ops", description=OPS, formatter_class=style)
    ops.add_argument("--rounds", type=int, default=9, help="how often each contender runs (default: 9)")
    ops.add_argument("--only", metavar="SECTION", help="fps, knn, chamfer, grouping or precision (default: all)")
    ops.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu or cuda (default: auto)")
    ops.add_argument("--save", type=Path, metavar="PAGE.md", help="also write a page of Markdown, replacing it")
    data = commands.add_parser("data", description=DATA, formatter_class=style)
    data.add_argument("--rounds", type=int, default=9, help="batches and steps to time (default: 9)")
    data.add_argument("--shapes", type=int, default=12_311, help="clouds in the file (default: 12311)")
    data.add_argument("--points", type=int, default=8192, help="points of each (default: 8192)")
    return parser


# What measures is imported where it is used: torch and the libraries take seconds, --help should not.


def time_step(config: str, overrides: list[str], pairs: int) -> None:
    """Check what was asked, then compare the steps."""
    from benchmarks.step import compare_steps

    from pc_ewa.config import load_experiment

    if pairs < 1:
        raise ConfigError(f"--pairs {pairs}; time at least one")
    experiment = load_experiment(config, overrides)
    if experiment.ewa is None:
        raise ConfigError(f"{config} has no ewa section to compare; add ewa.num_experts=4")
    print(compare_steps(experiment, pairs))


def time_ops(options: argparse.Namespace, arguments: list[str]) -> None:
    """Check what was asked, then run the sections; each prints as it ends."""
    if options.rounds < 1:
        raise ConfigError(f"--rounds {options.rounds}; time at least one")
    page = options.save
    if page and page.is_dir():
        raise ConfigError(f"--save {page}: that is a folder; name a file in it")
    if page and not page.parent.is_dir():
        raise ConfigError(f"--save {page}: there is no folder {page.parent}; make it, or choose another")
    from benchmarks.ops import measure
    from benchmarks.report import write_page

    report = measure(options.only, options.rounds, options.device)
    if page:
        write_page(page, report, f"python tools/benchmark.py {shlex.join(arguments)}")


def time_data(options: argparse.Namespace) -> None:
    """Check what was asked, then open, draw and train."""
    if options.rounds < 1:
        raise ConfigError(f"--rounds {options.rounds}; time at least one")
    if options.shapes < 200 or options.points < 1200:
        raise ConfigError(f"--shapes {options.shapes} --points {options.points}; at least 200 and 1200")
    from benchmarks.data import Size, measure

    for target in measure(options.rounds, Size(options.shapes, options.points)):
        print(target.describe())


if __name__ == "__main__":
    sys.exit(main())
