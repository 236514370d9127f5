"""The config of a comparison, checked as a whole before anything runs, and the runs that it asks for."""

import copy
import json
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pydantic
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from pc_ewa.config import Experiment, resolve
from pc_ewa.errors import ConfigError
from pc_ewa.eval.metric import Metric
from pc_ewa.train.objectives import create_objective
from pc_ewa.train.run_folder import RunFolder
from pc_ewa.validation import choose, describe, refuse_switch
from pc_ewa.yaml_config import apply_overrides, read_yaml

Number = int | float

# What the command writes into the output folder beside the folders of the variants.
RESULTS, TABLES, SCORES, COSTS = "results.json", "results.md", "results.csv", "costs.json"
CURVES, POINTS, PICTURE = "curves.json", "curves.csv", "curves.png"
FILES = (RESULTS, TABLES, SCORES, COSTS, CURVES, POINTS, PICTURE)


def _each_once(kind: str, write: str = "") -> AfterValidator:
    """Refuse a list in which two values are the same, as the format `write` writes them."""

    def check(values: list[Number]) -> list[Number]:
        if len({format(value, write) for value in values}) < len(values):
            raise PydanticCustomError("twice", f"a {kind} is there twice; name each once")
        return values

    return AfterValidator(check)


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]  # of a folder
Seeds = Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1), _each_once("seed")]
Values = Annotated[list[Number], Field(min_length=1), _each_once("value (to six digits)", "g")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    _switch = pydantic.field_validator("*", mode="wrap")(refuse_switch)


class Sweep(_Section):
    """One key, tried at these values by every variant; validation chooses."""

    key: str
    values: Values
    seeds: Seeds = [0]


class Variant(_Section):
    """One side of a comparison: a title for the tables, and changes of the experiment."""

    title: str
    changes: list[str] = []


class Comparison(_Section):
    """The keys of a comparison's YAML file."""

    title: str
    experiment: str  # the config that all variants share
    changes: list[str] = []  # for all variants
    output: str
    seeds: Seeds
    variants: Annotated[dict[Name, Variant], Field(min_length=1)]
    baseline: str | None = None  # a key of variants; the first
    highlight: str | None = None  # the one that a summary names beside the baseline; "ewa" if there is one
    sweep: Sweep | None = None
    summary: bool = True  # a row in the README; false: an ablation, which has its table alone

    @pydantic.model_validator(mode="after")
    def _check_names(self) -> "Comparison":
        for key in ("baseline", "highlight"):
            if getattr(self, key):
                choose(key, getattr(self, key), self.variants)
        for name in set(self.variants) & set(FILES):
            raise ConfigError(f"variants.{name}: that is a file of the results; choose another name")
        if "\0" in self.output:
            raise ConfigError(f"output={self.output!r}: no folder has a NUL in its name; leave it out")
        titles = [variant.title for variant in self.variants.values()]
        if twice := [title for title in titles if titles.count(title) > 1]:
            raise ConfigError(f"variants: the title {twice[0]!r} is there twice; give each its own")
        return self

    @pydantic.model_validator(mode="after")
    def _check_changes(self) -> "Comparison":
        taken = {"seed": "seeds says which", "output": "every run has a folder of its own"}
        if self.sweep:
            if self.sweep.key in taken:
                raise ConfigError(f"sweep.key={self.sweep.key}: {taken[self.sweep.key]}; choose another key")
            taken[self.sweep.key] = "the sweep chooses it; leave it out, or set sweep=null"
        own = {f"variants.{name}.changes": variant.changes for name, variant in self.variants.items()}
        for where, changes in {"changes": self.changes, **own}.items():
            for change in changes:
                key = change.partition("=")[0]
                if key in taken:
                    raise ConfigError(f"{where}: {change}: {taken[key]}")
        return self


class Run(NamedTuple):
    """One training run; `value` is that of the sweep, None without one."""

    variant: str
    value: Number | None
    seed: int
    folder: Path
    overrides: tuple[str, ...]

    @property
    def files(self) -> RunFolder:
        """The files that it leaves."""
        return RunFolder(self.folder)

    @property
    def title(self) -> str:
        """Its name in a line of progress."""
        return " ".join(self.folder.parts[-2:] if self.value is None else self.folder.parts[-3:])


class Plan:
    """A checked comparison.

    Args:
        name: that of the config file.
        comparison: its content.
        command: what gives the same comparison again.
    """

    def __init__(self, name: str, comparison: Comparison, command: str) -> None:
        self.name, self.comparison, self.command = name, comparison, command
        self.output = Path(comparison.output)
        self.variants = comparison.variants
        self.sweep, self.seeds = comparison.sweep, comparison.seeds
        self.baseline = comparison.baseline or next(iter(self.variants))
        self.highlight = comparison.highlight or ("ewa" if "ewa" in self.variants else None)
        self._resolved: dict[Run, Experiment] = {}

    def run(self, variant: str, value: Number | None, seed: int) -> Run:
        """The run of a variant at a value of the sweep (None without one) with a seed."""
        folder = self.output / variant
        changes = ["wandb.mode=disabled", *self.comparison.changes, *self.variants[variant].changes]
        if self.sweep and value is not None:
            folder /= f"{self.sweep.key.rpartition('.')[2]}_{value:g}"
            changes.append(f"{self.sweep.key}={value!r}")
        folder /= f"seed_{seed}"
        changes += [f"seed={seed}", f"output={json.dumps(str(folder), ensure_ascii=False)}"]
        return Run(variant, value, seed, folder, tuple(changes))

    @property
    def values(self) -> list[Number | None]:
        """The values of the sweep, from the smallest; without one, only None."""
        return [*sorted(self.sweep.values)] if self.sweep else [None]

    def sweep_runs(self) -> list[Run]:
        """All runs that the sweep needs, one seed of all variants after the other."""
        if self.sweep is None:
            return []
        return [self.run(v, value, seed) for seed in self.sweep.seeds for v in self.variants for value in self.values]

    def final_runs(self, variant: str, value: Number | None) -> list[Run]:
        """The runs of a variant at the value chosen, one for each seed."""
        return [self.run(variant, value, seed) for seed in self.seeds]

    def resolve(self, run: Run) -> Experiment:
        """Return the whole experiment of a run; the file is read once, and each run is checked once.

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
    """Read the YAML file of a comparison, and check all of it.

    Args:
        path: the file; its name is that of the comparison.
        overrides: `key=value` changes of its keys.
        command: what the user typed.

    Raises:
        ConfigError: a wrong key or value, in the file or in what its variants change.
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


def _check_experiments(plan: Plan) -> None:
    """Resolve every variant at every value."""
    for variant in plan.variants:
        for value in plan.values:
            key = create_objective(plan.resolve(plan.run(variant, value, plan.seeds[0]))).main_metric.key
            if key != plan.metric.key:
                measured = f"variant {variant} is measured by {key}, {plan.baseline} by {plan.metric.key}"
                raise ConfigError(f"{measured}; compare what has the same metric")
        if plan.sweep:
            _check_sweep_key(plan, variant, plan.sweep.key)


def _check_sweep_key(plan: Plan, variant: str, key: str) -> None:
    """The variant must have a number there of its own: the sweep would switch on a section that is null."""
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
