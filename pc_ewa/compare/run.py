"""A whole comparison: check this machine, run the sweep and all seeds, write costs, curves and tables."""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pc_ewa.compare.costs import measure_costs
from pc_ewa.compare.curves import make_curves
from pc_ewa.compare.execute import Broken, Executor, cores
from pc_ewa.compare.plan import COSTS, CURVES, FILES, PICTURE, POINTS, RESULTS, SCORES, TABLES, Plan, Run
from pc_ewa.compare.report import as_csv, as_markdown
from pc_ewa.compare.results import collect
from pc_ewa.compare.sweep import final_runs, is_settled
from pc_ewa.config import Experiment
from pc_ewa.errors import ConfigError, Error
from pc_ewa.files import lock_folder, read_json, write_text, write_whole
from pc_ewa.train.distributed import choose_device
from pc_ewa.train.run_folder import RunFolder
from pc_ewa.train.setup import check_initial_weights
from pc_ewa.train.splits import load_splits

_OTHERS = "another comparison, or by runs still going on of one that was killed"


class Options(NamedTuple):
    """Choices about the making of a comparison.

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
    lines = [f"{'done ' if run.files.is_finished else 'to do'}  {run.folder}" for run in runs]
    done = sum(run.files.is_finished for run in runs)
    lines.append(f"{plan.comparison.title}: {done} runs done, {_total(plan, only) - done} to do")
    unsettled = [v for v in _variants(plan, only) if not is_settled(plan, v)]
    if unsettled and plan.sweep:
        lines.append(f"the sweep then chooses {plan.sweep.key}, and the other seeds follow: {', '.join(unsettled)}")
    return "\n".join(lines)


def check_runs(plan: Plan) -> None:
    """Check the run folders, the files that runs start from, the data, and a validation part if there is a sweep.

    Raises:
        Error: what is missing or in the way, or a run folder that holds a run with other settings.
    """
    _check_folders(plan)
    has_validation: dict[str, bool] = {}
    for variant in plan.variants:
        check_initial_weights(plan.resolve(plan.run(variant, plan.values[0], plan.seeds[0])))
        for value in plan.values:
            experiment = plan.resolve(plan.run(variant, value, plan.seeds[0]))
            if not _load_data(experiment, has_validation) and plan.sweep:
                raise ConfigError(
                    f"variant {variant}: the sweep needs a validation part to choose on, but data.val_fraction=0; "
                    "raise it or set sweep=null"
                )


def check_save(folder: Path, name: str) -> None:
    """Make the folder that gets copies of the results of the comparison `name`.

    Raises:
        ConfigError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        problem = "" if os.access(folder, os.W_OK) else "it cannot be written"
    except OSError as error:
        problem = str(error.strerror)
    taken = [path for file in (RESULTS, PICTURE) if (path := _copied(name, file, folder)).is_dir()]
    if taken:
        problem = f"{taken[0]} is a folder"
    if problem:
        raise ConfigError(f"--save {folder}: {problem}; name a folder for the copies")


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
        done = sum(run.files.is_finished for run in {run for runs in _wanted(plan, options.only) for run in runs})
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
    runs = {v: [r for r in final if r.files.is_finished] for v, final in final_runs(plan, broken).items()}
    runs = {variant: finished for variant, finished in runs.items() if finished}
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


def _check_folders(plan: Plan) -> None:
    # Where no run has begun there is no config to differ from, and any experiment will do: can it be written?
    RunFolder(plan.output).check(plan.experiment)
    for name in FILES:
        if (plan.output / name).is_dir():
            raise ConfigError(f"{plan.output / name} is a folder, where the results go; move it or set output=...")
    for variant in plan.variants:
        for value in plan.values:
            for seed in sorted({*plan.seeds, *(plan.sweep.seeds if plan.sweep else [])}):
                run = plan.run(variant, value, seed)
                run.files.check(plan.resolve(run) if run.files.is_begun else plan.experiment)


def _load_data(experiment: Experiment, has_validation: dict[str, bool]) -> bool:
    """Load what was not loaded yet; returns whether the experiment has a validation part."""
    for data in (experiment.data, *([experiment.probe.data] if experiment.probe else [])):
        key = data.model_dump_json()
        if key not in has_validation:
            has_validation[key] = load_splits(data, experiment.seed).val is not None
    return has_validation[experiment.data.model_dump_json()]


def _costs(plan: Plan, runs: Mapping[str, Sequence[Run]]) -> Mapping[str, Any] | None:
    """Return the costs, or None and a line: all variants are in memory at once, which may be too much for a GPU."""
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
    """Read what was written earlier; nothing if it is not there or damaged."""
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
            _copy_file(plan.output / name, _copied(plan.name, name, folder))


def _copy_file(source: Path, target: Path) -> None:
    content = source.read_bytes()
    write_whole(target, lambda file: file.write(content))


def _copied(name: str, file: str, folder: Path) -> Path:
    """Return the path of a copy of a file of the comparison `name`."""
    return folder / f"{name}{Path(file).suffix}"


def _variants(plan: Plan, only: tuple[str, ...]) -> list[str]:
    return [variant for variant in plan.variants if not only or variant in only]


def _wanted(plan: Plan, only: tuple[str, ...], broken: Collection[Path] = ()) -> tuple[list[Run], list[Run]]:
    """Return the runs of the sweep, and those of all seeds as far as their settings are known; seed by seed."""
    variants = _variants(plan, only)
    final = final_runs(plan, broken)
    by_seed = zip(*(final[variant] for variant in variants if variant in final), strict=True)
    return [run for run in plan.sweep_runs() if run.variant in variants], [run for runs in by_seed for run in runs]


def _total(plan: Plan, only: tuple[str, ...]) -> int:
    """Count the runs in all: those of the sweep serve as final ones where value and seed are the same."""
    swept = plan.sweep.seeds if plan.sweep else []
    each = len(plan.values) * len(swept) + len(set(plan.seeds) - set(swept))
    return each * len(_variants(plan, only))


def _jobs(plan: Plan, options: Options) -> int:
    if options.jobs is not None:
        return options.jobs
    if choose_device(plan.experiment.device).type == "cuda":
        return 1
    return max(1, min(cores(), _total(plan, options.only)))
