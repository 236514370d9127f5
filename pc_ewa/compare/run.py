"""Make a comparison: check the machine, run the sweep and all seeds, write costs, curves and tables."""

import json
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pc_ewa.compare.comparison import COSTS, CURVES, PICTURE, POINTS, RESULTS, SCORES, TABLES
from pc_ewa.compare.costs import measure_costs
from pc_ewa.compare.curves import make_curves
from pc_ewa.compare.execute import Broken, Executor
from pc_ewa.compare.ledger import Ledger
from pc_ewa.compare.machine import cores
from pc_ewa.compare.plan import Plan, Run
from pc_ewa.compare.preflight import check_runs, check_save, copied
from pc_ewa.compare.report import as_csv, as_markdown
from pc_ewa.compare.results import collect
from pc_ewa.compare.sittings import check_same_data
from pc_ewa.compare.sweep import final_runs, is_settled, sweep_runs
from pc_ewa.errors import Error
from pc_ewa.files import lock_folder, read_json, write_text, write_whole
from pc_ewa.train.distributed import choose_device

_OTHERS = "another comparison, or by runs still going on of one that was killed"


class Options(NamedTuple):
    """Options of `compare`.

    `jobs` is the number of runs at a time; None takes one per core, or one on a GPU. `only` names the variants to run
    (empty: all); the tables show all finished ones. `costs` switches the measurement of costs. `save` is a folder for
    copies of the results and the ledger; None saves none.

    Example:
        >>> Options(jobs=2, only=("dense", "ewa")).costs
        True
    """

    jobs: int | None = None
    only: tuple[str, ...] = ()
    costs: bool = True
    save: Path | None = None


def outline(plan: Plan, only: tuple[str, ...] = ()) -> str:
    """List the runs that are finished and those to do. Nothing is run, written or checked.

    Example:
        >>> from pc_ewa.compare import load_plan
        >>> outline(load_plan("compare/furniture", ["sweep=null", "seeds=[0]"]), only=("dense",)).splitlines()[0]
        'to do  runs/compare/furniture/dense/seed_0'
    """
    sweep, final = _wanted(plan, only)
    runs = list(dict.fromkeys([*sweep, *final]))
    lines = [f"{'done ' if run.files.is_finished else 'to do'}  {run.folder}" for run in runs]
    done = sum(run.files.is_finished for run in runs)
    lines.append(f"{plan.comparison.title}: {done} runs done, {_total(plan, only) - done} to do")
    unsettled = [v for v in _variants(plan, only) if not is_settled(plan, v)]
    if unsettled and plan.sweep:
        lines.append(f"the sweep then chooses {plan.sweep.key}, and the other seeds follow: {', '.join(unsettled)}")
    return "\n".join(lines)


def compare(plan: Plan, options: Options) -> list[Broken]:
    """Make a comparison, or resume one. Finished runs are never run again.

    Returns:
        The runs that failed. Tables, curves and results.json contain the others.

    Raises:
        Error: a problem found before anything runs.
        Stopped: a stop signal arrived; the same call resumes.
    """
    check_runs(plan)
    if options.save:
        check_save(options.save, plan.name)
    with lock_folder(plan.output, _OTHERS) as lock:
        ledger = _open_ledger(plan, options)
        executor = Executor(plan, _jobs(plan, options), 0, lock)
        executor.landed = partial(_land, plan, options, executor, ledger)
        done = sum(run.files.is_finished for run in {run for runs in _wanted(plan, options.only) for run in runs})
        executor.total = _total(plan, options.only) - done
        if executor.total:
            print(
                f"{plan.comparison.title}: {done} runs done, {executor.total} to do, {executor.jobs} at a time",
                flush=True,
            )
        # The results of a sweep may extend it beyond its ends, so the list of its runs is made again after each pass.
        while runs := _to_do(_wanted(plan, options.only, executor.broken)[0], executor):
            executor.total = executor.done + _left(plan, options.only, executor)
            executor.execute(runs)
        executor.execute(_wanted(plan, options.only, executor.broken)[1])
        report(plan, options, executor.broken)
    return list(executor.broken.values())


def _open_ledger(plan: Plan, options: Options) -> Ledger | None:
    """Restore the runs of the ledger, and add finished runs that it lacks. Returns None without `save`."""
    ledger = Ledger(plan, options.save) if options.save else None
    told = ledger.restore() if ledger else []
    finished = [run for runs in _wanted(plan, ()) for run in runs if run.files.is_finished]
    check_same_data(plan, finished)
    for run in finished:
        if ledger:
            ledger.add(run)
    for line in told:
        print(line, flush=True)
    return ledger


def _land(plan: Plan, options: Options, executor: Executor, ledger: Ledger | None, run: Run) -> None:
    """Append a run that has just finished to the ledger, and write the results so far."""
    if ledger and options.save:
        ledger.add(run)
        _write(plan, collect(plan, _finished(plan, executor.broken), None, executor.broken))
        _copy(plan, options.save)


def report(plan: Plan, options: Options, broken: Mapping[Path, Broken]) -> None:
    """Write and print the results of the finished runs. `broken` are the failed runs, by folder."""
    runs = _finished(plan, broken)
    results = collect(plan, runs, None, broken)
    _write(plan, results)  # before a measurement that may fail
    if runs:
        _write_curves(plan, runs)
    costs = _costs(plan, runs) if options.costs and runs else None
    if costs:
        results = collect(plan, runs, costs, broken)
        _write(plan, results)
    if options.save:
        _copy(plan, options.save)
    copies = f"; copies: {options.save}" if options.save else ""
    print(f"\n{as_markdown(results)}\nresults, curves: {plan.output}{copies}")


def _finished(plan: Plan, broken: Collection[Path]) -> dict[str, list[Run]]:
    """Return the finished runs at its final setting of every variant that has some."""
    runs = {v: [r for r in final if r.files.is_finished] for v, final in final_runs(plan, broken).items()}
    return {variant: finished for variant, finished in runs.items() if finished}


def _costs(plan: Plan, runs: Mapping[str, Sequence[Run]]) -> Mapping[str, Any] | None:
    """Return the costs. If they cannot be measured, print a line and return None.

    All variants are in memory at once, which may be too much for a GPU.
    """
    try:
        known = _read(plan.output / COSTS)
        measured = measure_costs(plan, runs, known)
        if measured != known:
            write_text(plan.output / COSTS, json.dumps(measured, indent=2) + "\n")
        return measured
    except Exception as error:
        kind = "" if isinstance(error, Error) else f"{type(error).__name__}: "
        print(f"costs were not measured: {kind}{' '.join(str(error).split())}", flush=True)
        return None


def _read(path: Path) -> dict[str, Any]:
    """Read a JSON object. Returns an empty one if the file is absent or damaged."""
    try:
        content = read_json(path)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _write(plan: Plan, results: dict[str, Any]) -> None:
    write_text(plan.output / RESULTS, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    write_text(plan.output / TABLES, f"# {plan.comparison.title}\n\n{as_markdown(results)}")
    write_text(plan.output / SCORES, as_csv(results))


def _write_curves(plan: Plan, runs: Mapping[str, Sequence[Run]]) -> None:
    curves = make_curves(plan, runs)
    write_text(plan.output / CURVES, curves.as_json())
    write_text(plan.output / POINTS, curves.as_csv())
    write_whole(plan.output / PICTURE, curves.draw)


def _copy(plan: Plan, folder: Path) -> None:
    """Copy results and curves, named after the comparison."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (RESULTS, PICTURE):
        if (plan.output / name).is_file():
            _copy_file(plan.output / name, copied(plan.name, name, folder))


def _copy_file(source: Path, target: Path) -> None:
    content = source.read_bytes()
    write_whole(target, lambda file: file.write(content))


def _variants(plan: Plan, only: tuple[str, ...]) -> list[str]:
    return [variant for variant in plan.variants if not only or variant in only]


def _wanted(plan: Plan, only: tuple[str, ...], broken: Collection[Path] = ()) -> tuple[list[Run], list[Run]]:
    """Return the runs of the sweep, and the final runs with known settings, seed by seed."""
    variants = _variants(plan, only)
    final = final_runs(plan, broken)
    by_seed = zip(*(final[variant] for variant in variants if variant in final), strict=True)
    swept = [run for run in sweep_runs(plan, broken) if run.variant in variants]
    return swept, [run for runs in by_seed for run in runs]


def _total(plan: Plan, only: tuple[str, ...]) -> int:
    """Count all runs. A run of the sweep is also the final run with the same value and seed."""
    swept, variants = plan.sweep.seeds if plan.sweep else [], _variants(plan, only)
    final = len(set(plan.seeds) - set(swept)) * (plan.comparison.folds or 1) * len(variants)
    return final + sum(run.variant in variants for run in sweep_runs(plan))


def _to_do(runs: Sequence[Run], executor: Executor) -> list[Run]:
    return [run for run in runs if not run.files.is_finished and run.folder not in executor.broken]


def _left(plan: Plan, only: tuple[str, ...], executor: Executor) -> int:
    """Count the runs to do, as far as the sweep is known."""
    settled = {run for runs in _wanted(plan, only, executor.broken) for run in runs}
    waiting = [v for v in _variants(plan, only) if not is_settled(plan, v, executor.broken)]
    swept = plan.sweep.seeds if plan.sweep else []
    final = len(set(plan.seeds) - set(swept)) * (plan.comparison.folds or 1) * len(waiting)
    return final + len(_to_do([*settled], executor))


def _jobs(plan: Plan, options: Options) -> int:
    if options.jobs is not None:
        return options.jobs
    if choose_device(plan.experiment.device).type == "cuda":
        return 1
    return max(1, min(cores(), _total(plan, options.only)))
