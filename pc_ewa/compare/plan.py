"""The plan of a comparison: its config, checked as a whole before anything runs, and its runs."""

import copy
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pydantic

from pc_ewa.compare.comparison import Comparison, Number
from pc_ewa.config import Experiment, resolve
from pc_ewa.errors import ConfigError
from pc_ewa.eval.metric import Metric
from pc_ewa.train.objectives import create_objective
from pc_ewa.train.run_folder import RunFolder
from pc_ewa.validation import describe
from pc_ewa.yaml_config import apply_overrides, read_yaml


class Run(NamedTuple):
    """One training run of a variant, with the value of the swept key and the number of the fold.

    `value` is None without a sweep, `fold` is None without cross-validation. `overrides` are the changes of the
    shared config, as `key=value`.
    """

    variant: str
    value: Number | None
    seed: int
    folder: Path
    overrides: tuple[str, ...]
    fold: int | None = None

    @property
    def key(self) -> str:
        """The key that pairs it with runs of other variants: the seed, or seed/fold."""
        return pair_key(self.seed, self.fold)

    @property
    def files(self) -> RunFolder:
        """Its run folder."""
        return RunFolder(self.folder)

    @property
    def title(self) -> str:
        """Its name in progress lines."""
        # The end of the folder: the variant, then the value and the fold if there are any, then the seed.
        return " ".join(self.folder.parts[-2 - (self.value is not None) - (self.fold is not None) :])


def pair_key(seed: int, fold: int | None) -> str:
    """Return the key that pairs runs of different variants in results.json."""
    return str(seed) if fold is None else f"{seed}/{fold}"


def pair_keys(seeds: Sequence[int], folds: int | None) -> list[str]:
    """Return the keys of all seeds and folds."""
    return [pair_key(seed, fold) for seed in seeds for fold in (range(folds) if folds else [None])]


class Plan:
    """A checked comparison and its runs.

    Args:
        name: name of the config file.
        comparison: content of the config file.
        command: the command that repeats the comparison.

    Example:
        >>> plan = load_plan("compare/furniture")
        >>> plan.run("dense", 0.001, seed=1).folder.as_posix()
        'runs/compare/furniture/dense/lr_0.001/seed_1'
    """

    def __init__(self, name: str, comparison: Comparison, command: str) -> None:
        self.name, self.comparison, self.command = name, comparison, command
        self.output = Path(comparison.output)
        self.variants = comparison.variants
        self.sweep, self.seeds = comparison.sweep, comparison.seeds
        self.baseline = comparison.baseline_name
        self.highlight = comparison.highlight or ("ewa" if "ewa" in self.variants else None)
        self._resolved: dict[Run, Experiment] = {}

    def run(self, variant: str, value: Number | None, seed: int, fold: int | None = None) -> Run:
        """Return the run of a variant with a value of the sweep, a seed and a fold.

        `value` is None without a sweep. `fold` is None without cross-validation.
        """
        folder = self.output / variant
        changes = ["wandb.mode=disabled", *self.comparison.changes, *self.variants[variant].changes]
        if self.sweep and value is not None:
            folder /= f"{self.sweep.key.rpartition('.')[2]}_{value:g}"
            changes.append(f"{self.sweep.key}={value!r}")
        folds = self.comparison.folds
        if folds:
            fold = fold or 0
            folder /= f"fold_{fold}"
            changes += [f"data.cv_folds={folds}", f"data.cv_fold={fold}"]
        folder /= f"seed_{seed}"
        changes += [f"seed={seed}", f"output={json.dumps(str(folder), ensure_ascii=False)}"]
        return Run(variant, value, seed, folder, tuple(changes), fold if folds else None)

    @property
    def values(self) -> list[Number | None]:
        """The values of the sweep in ascending order; without a sweep, only None."""
        return [*sorted(self.sweep.values)] if self.sweep else [None]

    def runs(self, variant: str, value: Number | None, seeds: Sequence[int]) -> list[Run]:
        """Return the runs of a variant at a value, one for each seed, or for each seed and fold."""
        folds: Sequence[int | None] = range(self.comparison.folds) if self.comparison.folds else [None]
        return [self.run(variant, value, seed, fold) for seed in seeds for fold in folds]

    def final_runs(self, variant: str, value: Number | None) -> list[Run]:
        """Return the runs of a variant at the chosen value, with all seeds and folds of the comparison."""
        return self.runs(variant, value, self.seeds)

    def resolve(self, run: Run) -> Experiment:
        """Return the resolved experiment of a run. Results are cached.

        Raises:
            ConfigError: a wrong key or value, with the name of the variant.
        """
        if run not in self._resolved:
            try:
                self._resolved[run] = resolve(apply_overrides(copy.deepcopy(self._shared), [*run.overrides]))
            except ConfigError as error:
                raise ConfigError(f"variant {run.variant}: {error}") from None
        return self._resolved[run]

    @cached_property
    def _shared(self) -> dict[str, Any]:
        """The content of the config that all variants share."""
        return read_yaml(self.comparison.experiment)

    @cached_property
    def experiment(self) -> Experiment:
        """The experiment of the baseline."""
        return self.resolve(self.run(self.baseline, self.values[0], self.seeds[0]))

    @cached_property
    def metric(self) -> Metric:
        """The main metric of all variants."""
        return create_objective(self.experiment).main_metric


def load_plan(path: str | Path, overrides: list[str] | None = None, command: str = "") -> Plan:
    """Read the YAML file of a comparison and check all of it.

    Args:
        path: the file, or the name of a bundled one. Its stem is the name of the comparison.
        overrides: `key=value` changes of its keys. None changes nothing.
        command: the command of the user, for the results.

    Raises:
        ConfigError: a wrong key or value, in the file or in the changes of a variant.

    Example:
        >>> load_plan("compare/furniture", ["seeds=[0,1]"]).seeds
        [0, 1]
    """
    path = Path(path)
    content = read_yaml(path)
    if "model" in content and "variants" not in content:
        raise ConfigError(f"{path} is one experiment; name a comparison, such as compare/furniture, or run folders")
    content.setdefault("output", f"runs/compare/{path.stem}")
    try:
        comparison = Comparison.model_validate(apply_overrides(content, overrides or []))
    except pydantic.ValidationError as error:
        raise ConfigError(f"{path}: {describe(error, Comparison)}") from None
    plan = Plan(path.stem, comparison, command)
    _check_experiments(plan)
    return plan


def ends(plan: Plan) -> list[Number]:
    """Return the lowest and the highest value that an extended sweep can try. Empty without `sweep.extend`."""
    if plan.sweep is None or not plan.sweep.extend:
        return []
    low = high = sorted(plan.sweep.values)
    for _ in range(plan.sweep.extend):
        low, high = [beyond(low, "lowest"), *low], [*high, beyond(high, "highest")]
    return [low[0], high[-1]]


def beyond(values: Sequence[Number], side: str) -> Number:
    """Return the value beyond one end ("lowest" or "highest") of ascending values, by the ratio of the last two there.

    Example:
        >>> beyond([0.001, 0.002, 0.005], "lowest"), beyond([0.001, 0.002, 0.005], "highest")
        (0.0005, 0.0125)
    """
    end, inner = (values[0], values[1]) if side == "lowest" else (values[-1], values[-2])
    value = float(f"{end * end / inner:.6g}")  # six digits, as the folder of the run has them
    return int(value) if isinstance(end, int) and value.is_integer() else value


def _check_experiments(plan: Plan) -> None:
    """Resolve every variant at every value."""
    for variant in plan.variants:
        for value in (*plan.values, *ends(plan)):
            key = create_objective(plan.resolve(plan.run(variant, value, plan.seeds[0]))).main_metric.key
            if key != plan.metric.key:
                measured = f"variant {variant} is measured by {key}, {plan.baseline} by {plan.metric.key}"
                raise ConfigError(f"{measured}; compare what has the same metric")
        if plan.sweep:
            _check_sweep_key(plan, variant, plan.sweep.key)


def _check_sweep_key(plan: Plan, variant: str, key: str) -> None:
    """Check that the sweep's key is a number in the variant's config. A sweep must not switch on a null section."""
    found: object = plan.resolve(plan.run(variant, None, plan.seeds[0])).model_dump(mode="json")
    for step in key.split("."):
        found = found.get(step) if isinstance(found, dict) else None
    if isinstance(found, bool) or not isinstance(found, Number):
        raise ConfigError(
            f"variant {variant}: sweep.key={key} is not a number in its config without the sweep; choose a key that "
            "every variant has, such as train.lr"
        )
    if key == "data.val_fraction":
        raise ConfigError(f"sweep.key={key}: scores on other validation parts cannot be compared; choose another key")
