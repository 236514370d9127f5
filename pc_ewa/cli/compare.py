"""`pc-ewa compare`: variants over seeds, or finished runs side by side."""

from __future__ import annotations  # as in package.py

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from pc_ewa.cli.command import Parser, command
from pc_ewa.errors import ConfigError

DESCRIPTION = """\
Compare variants of an experiment over seeds, or finished runs: mean ± deviation, paired differences, a verdict."""

EPILOG = """\
examples:
  pc-ewa compare compare/furniture --check          # lists finished and remaining runs
  pc-ewa compare compare/furniture                  # runs it, or continues it
  pc-ewa compare compare/furniture seeds=[0] sweep=null output=runs/quick
  pc-ewa compare runs/ewa_0 runs/ewa_1 runs/dense_0 runs/dense_1 # folders of finished runs

A comparison runs its variants with the same seeds and the same sweep. The value of the sweep is chosen for each variant
on validation. A finished run is never repeated. A run that fails is reported, and the others continue (exit code 1).
The output folder gets results.json, .md and .csv, and the curves as .png, .csv and .json. With --save each run adds a
line to FOLDER/NAME.runs.jsonl when it finishes, and runs in that file are not repeated: several sittings and machines
can share a comparison. A run uses its share of the cores as threads; OMP_NUM_THREADS=1 limits it to one.

Run folders whose configs differ only in seed, output and trackers count as one setting:
  for seed in 0 1 2; do
    pc-ewa train quickstart seed=$seed output=runs/ewa_$seed
    pc-ewa train quickstart seed=$seed ewa=null output=runs/dense_$seed
  done
  pc-ewa compare runs/dense_* runs/ewa_*

± is the sample standard deviation over seeds; intervals are 95 % t intervals of differences paired by seed.
Verdicts are corrected for all planned comparisons (Holm)."""


def create_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(prog="pc-ewa compare", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument(
        "what",
        nargs="+",
        metavar="CONFIG [key=value ...] | FOLDER ...",
        help="a comparison, such as compare/furniture, and changes of its keys; or run folders",
    )
    parser.add_argument("--check", action="store_true", help="list the runs and check everything, then stop")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one per core; on a GPU 1)")
    parser.add_argument("--only", metavar="A,B", help="run these variants; the tables show all that is finished")
    parser.add_argument("--no-costs", action="store_true", help="do not measure parameters, FLOPs and times")
    parser.add_argument("--save", metavar="FOLDER", help="keep runs, results and curves there too")
    return parser


@command("compare", extra="compare")
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, then compare."""
    options = create_parser().parse_intermixed_args(arguments)
    if all(Path(path).is_dir() for path in options.what):
        refuse_flags(options)
        from pc_ewa.compare.report import as_markdown
        from pc_ewa.compare.results import collect_folders

        print(as_markdown(collect_folders([Path(path) for path in options.what])), end="")
        return
    first = Path(options.what[0])
    if first.is_dir() or (not first.suffix and not first.is_file() and first.parts[0] == "runs"):
        other = next(path for path in options.what if not Path(path).is_dir())
        raise ConfigError(f"{other} is not a folder; name finished runs")
    compare(options)


def refuse_flags(options: argparse.Namespace) -> None:
    """Raise ConfigError for an option of running, as finished runs are only read."""
    for name in ("check", "jobs", "only", "no_costs", "save"):
        given = getattr(options, name)
        if given is not None and given is not False:
            raise ConfigError(
                f"--{name.replace('_', '-')} is for a comparison, not for folders of finished runs; leave it out"
            )


def compare(options: argparse.Namespace) -> None:
    """Check the comparison, then run it."""
    from pc_ewa.compare import Options, check_runs, load_plan, outline
    from pc_ewa.compare import compare as compare_plan
    from pc_ewa.compare.execute import Stopped

    path, *overrides = options.what
    command = shlex.join(["pc-ewa", "compare", *options.what])
    plan = load_plan(path, overrides, command)
    only = tuple(filter(None, (options.only or "").split(",")))
    unknown = [variant for variant in only if variant not in plan.variants]
    if unknown:
        raise ConfigError(f"--only {options.only}: no variant {unknown[0]!r}; choose from {', '.join(plan.variants)}")
    if options.jobs is not None and options.jobs < 1:
        raise ConfigError(f"--jobs {options.jobs}; give a whole number from 1 on")
    if options.check:
        print(outline(plan, only), flush=True)
        check_runs(plan)
        return
    save = Path(options.save) if options.save else None
    try:
        broken = compare_plan(plan, Options(options.jobs, only, not options.no_costs, save))
    except Stopped:
        print("stopped; the same command continues", file=sys.stderr)
        sys.exit(130)  # 128 + SIGINT, as shells report it
    for run in broken:
        print(f"broken: {run.run}: {run.error}", file=sys.stderr)
    if broken:
        sys.exit(1)
