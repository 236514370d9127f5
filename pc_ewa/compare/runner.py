"""A whole comparison: the sweep, the runs of all seeds, costs, curves and tables, into one folder."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pc_ewa.compare.costs import measure_costs
from pc_ewa.compare.curves import save_curves
from pc_ewa.compare.execute import Broken, Executor, cores
from pc_ewa.compare.plan import Plan, Run
from pc_ewa.compare.preflight import check_runs, check_save
from pc_ewa.compare.report import as_csv, as_markdown
from pc_ewa.compare.results import collect
from pc_ewa.compare.sweep import final_runs, is_settled
from pc_ewa.errors import Error
from pc_ewa.files import lock_folder, write_text
from pc_ewa.train.distributed import choose_device

_OTHERS = "another comparison, or by runs still going on of one that was killed"


class Options(NamedTuple):
    """How a comparison is made.

    `jobs` runs at a time (None: all cores, or one at a time on a GPU); `only` these variants are run, and the tables
    show all that is finished; `costs` says whether to measure them; `save` is a folder that gets a copy for the docs.
    """

    jobs: int | None = None
    only: tuple[str, ...] = ()
    costs: bool = True
    save: Path | None = None


def outline(plan: Plan, only: tuple[str, ...] = ()) -> str:
    """Say which runs are finished and which are to be done; nothing is run, written or checked."""
    sweep, final = _wanted(plan, only)
    runs = list(dict.fromkeys([*sweep, *final]))
    lines = [f"{'done ' if plan.is_done(run) else 'to do'}  {run.folder}" for run in runs]
    done = sum(map(plan.is_done, runs))
    lines.append(f"{plan.comparison.title}: {done} runs done, {_total(plan, only) - done} to do")
    unsettled = [v for v in _variants(plan, only) if not is_settled(plan, v)]
    if unsettled and plan.sweep:
        lines.append(f"the sweep then chooses {plan.sweep.key}, and the other seeds follow: {', '.join(unsettled)}")
    return "\n".join(lines)


def compare(plan: Plan, options: Options) -> list[Broken]:
    """Make a comparison, or go on with one: what is finished is never run again.

    Returns:
        The runs that broke; tables, curves and results.json are of the others.

    Raises:
        Error: a problem found before anything runs.
        Stopped: by a signal; the same command goes on.
    """
    check_runs(plan)
    if options.save:
        check_save(options.save, plan.name)
    with lock_folder(plan.output, _OTHERS) as lock:
        executor = Executor(plan, _jobs(plan, options), 0, lock)
        done = sum(map(plan.is_done, dict.fromkeys(run for runs in _wanted(plan, options.only) for run in runs)))
        executor.total = _total(plan, options.only) - done
        if executor.total:
            print(
                f"{plan.comparison.title}: {done} runs done, {executor.total} to do, {executor.jobs} at a time",
                flush=True,
            )
        executor.execute(_wanted(plan, options.only)[0])
        executor.execute(_wanted(plan, options.only, executor.broken)[1])
        report(plan, options, executor.broken)
    return list(executor.broken.values())


def report(plan: Plan, options: Options, broken: Mapping[Path, Broken]) -> None:
    """Write and print what the finished runs show; `broken` are those, by folder, that are not waited for."""
    runs = {v: [r for r in final if plan.is_done(r)] for v, final in final_runs(plan, broken).items()}
    runs = {variant: finished for variant, finished in runs.items() if finished}
    results = collect(plan, runs, None, broken)
    _write(plan, results)  # before a measurement that may fail
    save_curves(plan, runs)
    costs = _costs(plan, runs) if options.costs and runs else None
    if costs:
        results = collect(plan, runs, costs, broken)
        _write(plan, results)
    if options.save:
        _copy(plan, options.save)
    copies = f"; copies: {options.save}" if options.save else ""
    print(f"\n{as_markdown(results)}\nresults, curves: {plan.output}{copies}")


def _costs(plan: Plan, runs: Mapping[str, Sequence[Run]]) -> dict[str, Any] | None:
    """The costs, or None and a line: all variants are in memory at once, which may be too much for a GPU."""
    try:
        return measure_costs(plan, runs)
    except Exception as error:
        kind = "" if isinstance(error, Error) else f"{type(error).__name__}: "
        print(f"costs were not measured: {kind}{' '.join(str(error).split())}", flush=True)
        return None


def _write(plan: Plan, results: dict[str, Any]) -> None:
    write_text(plan.output / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    write_text(plan.output / "results.md", f"# {plan.comparison.title}\n\n{as_markdown(results)}")
    write_text(plan.output / "results.csv", as_csv(results))


def _copy(plan: Plan, folder: Path) -> None:
    """Copy results and curves, named after the comparison."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("results.json", "curves.png"):
        source = plan.output / name
        if source.is_file():
            temporary = folder / f".{name}.tmp"
            temporary.write_bytes(source.read_bytes())
            temporary.replace(folder / f"{plan.name}{source.suffix}")


def _variants(plan: Plan, only: tuple[str, ...]) -> list[str]:
    return [variant for variant in plan.variants if not only or variant in only]


def _wanted(plan: Plan, only: tuple[str, ...], broken: Collection[Path] = ()) -> tuple[list[Run], list[Run]]:
    """The runs of the sweep, and those of all seeds as far as their settings are known; seed by seed."""
    variants = _variants(plan, only)
    final = final_runs(plan, broken)
    by_seed = zip(*(final[variant] for variant in variants if variant in final), strict=True)
    return [run for run in plan.sweep_runs() if run.variant in variants], [run for runs in by_seed for run in runs]


def _total(plan: Plan, only: tuple[str, ...]) -> int:
    """How many runs there are in all: those of the sweep serve as final ones where value and seed are the same."""
    swept = plan.sweep.seeds if plan.sweep else []
    each = len(plan.values) * len(swept) + len(set(plan.seeds) - set(swept))
    return each * len(_variants(plan, only))


def _jobs(plan: Plan, options: Options) -> int:
    if options.jobs is not None:
        return options.jobs
    if choose_device(plan.experiment.device).type == "cuda":
        return 1
    return max(1, min(cores(), _total(plan, options.only)))
