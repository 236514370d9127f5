"""The keys of a comparison's YAML file."""

from typing import Annotated

import pydantic
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat
from pydantic_core import PydanticCustomError

from pc_ewa.errors import ConfigError
from pc_ewa.validation import choose, refuse_switch

Number = int | float

# The files that the command writes into the output folder, beside the folders of the variants.
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
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)
    _switch = pydantic.field_validator("*", mode="wrap")(refuse_switch)


class Sweep(_Section):
    """A sweep of one key: every variant tries these values, and validation chooses.

    While the best value of a variant is the lowest or the highest, the next value beyond it is tried, at most `extend`
    times. The step is the ratio of the two values at that end.
    """

    key: str
    """Key of the experiment that is tried, such as train.lr."""
    values: Values
    """Values to try."""
    seeds: Seeds = [0]
    """Seeds of each value; the best mean on validation is chosen."""
    extend: Annotated[int, Field(ge=0)] = 0
    """How many times a value beyond the end is tried."""

    @pydantic.model_validator(mode="after")
    def _check_extend(self) -> "Sweep":
        if self.extend and (len(self.values) < 2 or min(self.values) <= 0):
            raise ConfigError(
                f"sweep.extend={self.extend} with values={self.values}: it takes the ratio of two values above 0; set 0"
            )
        return self


class Variant(_Section):
    """A variant of a comparison: a title for the tables, and changes of the experiment."""

    title: str
    """Name in tables and pictures."""
    changes: list[str] = []
    """Changes of the experiment, as key=value."""
    against: str | None = None
    """The variant that it is compared with; null: the baseline."""


class Comparison(_Section):
    """The keys of a comparison's YAML file."""

    title: str
    """Name in tables and pictures."""
    experiment: str
    """Config that all variants share: a path, or the name of a bundled one."""
    changes: list[str] = []
    """Changes for all variants, as key=value."""
    output: str
    """Folder of all runs and results; without it, `runs/compare/` and the name of the file."""
    seeds: Seeds
    """Seeds of each variant; variants are paired by them."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Cross-validation: a run for each seed and fold."""
    variants: Annotated[dict[Name, Variant], Field(min_length=1)]
    """The sides of the comparison, by the name of their folder."""
    baseline: str | None = None
    """The variant that the others are compared with; null: the first."""
    comparisons: list[str] = []
    """Variants whose verdicts are corrected for each other; empty: all but the baseline."""
    effect: PositiveFloat | None = None
    """The smallest difference of interest, in points; null: 0.5 where scores are in percent."""
    highlight: str | None = None
    """The variant that a summary names beside the baseline; null: "ewa" if there is one."""
    sweep: Sweep | None = None
    """One key that every variant tries first; null for none."""
    summary: bool = True
    """A row in the README; false: an ablation, which has its table alone."""

    @pydantic.model_validator(mode="after")
    def _check_names(self) -> "Comparison":
        for key in ("baseline", "highlight"):
            if getattr(self, key):
                choose(key, getattr(self, key), self.variants)
        references = {f"variants.{name}.against": variant.against for name, variant in self.variants.items()}
        for key, name in [*references.items(), *(("comparisons", name) for name in self.comparisons)]:
            if name is not None:
                choose(key, name, self.variants)
        if own := [name for name, variant in self.variants.items() if variant.against == name]:
            raise ConfigError(f"variants.{own[0]}.against={own[0]}: nothing differs from itself; name another variant")
        if self.baseline_name in self.comparisons:
            raise ConfigError(f"comparisons: {self.baseline_name} is what the others are compared with; leave it out")
        for name in set(self.variants) & set(FILES):
            raise ConfigError(f"variants.{name}: that is a file of the results; choose another name")
        if "\0" in self.output:
            raise ConfigError(f"output={self.output!r}: no folder has a NUL in its name; leave it out")
        titles = [variant.title for variant in self.variants.values()]
        if twice := [title for title in titles if titles.count(title) > 1]:
            raise ConfigError(f"variants: the title {twice[0]!r} is there twice; give each its own")
        return self

    @property
    def baseline_name(self) -> str:
        """The variant that the others are compared with, unless they name another in `against`."""
        return self.baseline or next(iter(self.variants))

    @pydantic.model_validator(mode="after")
    def _check_changes(self) -> "Comparison":
        taken = {"seed": "seeds says which", "output": "every run has a folder of its own"}
        if self.sweep:
            if self.sweep.key in taken:
                raise ConfigError(f"sweep.key={self.sweep.key}: {taken[self.sweep.key]}; choose another key")
            taken[self.sweep.key] = "the sweep chooses it; leave it out, or set sweep=null"
        if self.folds:
            taken |= dict.fromkeys(("data.cv_folds", "data.cv_fold"), f"folds={self.folds} says which")
        own = {f"variants.{name}.changes": variant.changes for name, variant in self.variants.items()}
        for where, changes in {"changes": self.changes, **own}.items():
            for change in changes:
                key = change.partition("=")[0]
                if key in taken:
                    raise ConfigError(f"{where}: {change}: {taken[key]}")
        return self
