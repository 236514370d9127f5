"""An experiment, typed: YAML file <- key=value overrides -> checked before anything long starts."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import nn

from pc_ewa.data import DATASETS
from pc_ewa.errors import ConfigError
from pc_ewa.ewa import ExpertAverager, upcycle
from pc_ewa.models import MODELS
from pc_ewa.trackers import TRACKERS
from pc_ewa.validation import arguments_of, check_arguments, choose, describe, nearest, refuse_switch
from pc_ewa.yaml_config import apply_overrides, check_size, read_yaml

# Arguments of models that the data decides, and that are not for the config to say again.
DECIDED_BY_DATA = ("num_classes", "num_parts", "num_categories")
# Arguments of EWA that a run decides: the model says itself which FFNs experts may replace.
DECIDED_BY_RUN = ("model", "ffn", "total_steps")

Fraction = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
    _switch = pydantic.field_validator("*", mode="wrap")(refuse_switch)


class _OpenSection(_Section):
    """A section that also takes the arguments of the thing it names; `resolve` checks them."""

    model_config = ConfigDict(extra="allow")

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments for the named thing."""
        return dict(self.__pydantic_extra__ or {})


class Data(_OpenSection):
    """The dataset; any other key goes to the dataset's loader (`path` of "hdf5", ...)."""

    name: str
    root: str = "datasets"
    num_points: PositiveInt = 1024  # per cloud; larger clouds are cut
    sampling: Literal["farthest", "random"] = "farthest"  # how they are cut; "random" is for pre-training
    normalize: bool = True  # centre and scale each cloud into the unit sphere
    val_fraction: Fraction = 0.1  # of each class, where there is no "val" split; 0: train on all, the last step counts
    train_per_class: PositiveInt | None = None  # few shapes of each class: the same ones, whatever the run's seed
    val_per_class: PositiveInt | None = None  # in place of val_fraction; these too are the same for every seed
    cv_folds: Annotated[int, Field(ge=2)] | None = None  # cross-validation: train and test, dealt anew into as many
    cv_fold: Annotated[int, Field(ge=0)] | None = None  # the one that is the test, from 0

    @pydantic.model_validator(mode="after")
    def _check_folds(self) -> "Data":
        fold, folds = self.cv_fold, self.cv_folds
        if (fold is None) != (folds is None):
            raise ValueError(f"cv_folds={folds} with cv_fold={fold}; set both, as in cv_folds=5 cv_fold=0, or none")
        if fold is not None and folds is not None and fold >= folds:
            raise ValueError(f"cv_fold={fold} of cv_folds={folds}; choose 0 to {folds - 1}")
        return self


class Model(_OpenSection):
    """The network; any other key is an argument of it (`dim`, `depth`, ...)."""

    name: str


class Ewa(_OpenSection):
    """Experts weights averaging; every key is an argument of `pc_ewa.upcycle` or `pc_ewa.ExpertAverager`."""


class Average(_Section):
    """Averaging of the whole model over training (torch.optim.swa_utils): what is measured, saved and merged."""

    kind: Literal["ema", "swa"] = "ema"  # exponential, every step; or the plain mean of the weights after each epoch
    decay: Fraction = 0.999  # of ema: how much of the average stays, each step
    start: Fraction | None = None  # share of training before averaging begins; null: 0 for ema, 0.75 for swa
    lr: PositiveFloat | None = None  # of swa: learning rate from `start` on; null keeps the schedule

    @property
    def begins(self) -> float:
        """Share of training before averaging begins."""
        return self.start if self.start is not None else {"ema": 0.0, "swa": 0.75}[self.kind]

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Average":
        if self.kind == "ema" and self.lr is not None:
            raise ValueError(f"lr={self.lr} with kind=ema, which keeps the schedule; leave it out, or set kind=swa")
        if self.kind == "swa" and self.decay != Average.model_fields["decay"].default:
            raise ValueError(f"decay={self.decay} with kind=swa, a plain mean; leave it out, or set kind=ema")
        return self


class Augment(_Section):
    """Random changes of each training cloud; the defaults are Point-MAE's fine-tuning recipe."""

    scale: tuple[PositiveFloat, PositiveFloat] | None = (2 / 3, 3 / 2)  # factor per axis
    isotropic: bool = False  # one factor for all axes
    shift: NonNegativeFloat = 0.2  # largest move per axis
    rotate: bool = False  # any angle about the up axis
    jitter: NonNegativeFloat = 0.0  # standard deviation of the noise of each point


class SlowFfn(_Section):
    """A lower learning rate for some FFNs of a dense model, as if they were merged from experts (docs/theory.md)."""

    factor: PositiveFloat  # of the learning rate
    layers: str | list[int] = "every-2"  # as in the ewa section


class Train(_Section):
    """The loop; the defaults are Point-MAE's fine-tuning recipe, with a validation part cut from train."""

    epochs: PositiveInt = 300
    steps: PositiveInt | None = None  # optimizer steps, in place of epochs
    batch_size: Annotated[int, Field(ge=2)] = 32  # shapes per optimizer step, over all processes
    accumulate: PositiveInt = 1  # parts of a process's batch, one after the other, to save memory
    lr: PositiveFloat = 5e-4
    slow_ffn: SlowFfn | None = None  # of a dense model: FFNs whose learning rate is another
    min_lr: NonNegativeFloat = 1e-6  # where warm-up starts and the cosine ends
    warmup: Fraction = 1 / 30  # share of training
    weight_decay: NonNegativeFloat = 0.05
    clip_grad: PositiveFloat | None = 10.0  # norm; null leaves gradients as they are
    label_smoothing: Fraction = 0.0
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast, weights stay fp32
    # torch.compile of the training step, by its mode; the last two replay it as CUDA graphs. null runs it as it is.
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None = None
    checkpoint_activations: bool = False  # compute activations twice: half the memory, a third more time
    # Of several processes: each holds the whole model (DDP), or a share of it and of its optimizer (FSDP2).
    sharding: Literal["none", "fsdp"] = "none"
    eval_every: PositiveInt = 1  # epochs from one validation to the next
    save_every: PositiveInt | None = None  # steps; null saves after each validation
    keep: PositiveInt = 2  # newest checkpoints, besides best.pt


class Probe(_Section):
    """A linear SVM on the frozen features while pre-training; it is logged, and never chooses a checkpoint."""

    data: Data
    every: PositiveInt = 20  # epochs of pre-training


class Experiment(_Section):
    """Everything a run depends on; config.yaml in a run folder shows it with every default.

    It also takes a section for each of TRACKERS, which plays no part in what is computed; null switches one off.
    """

    model_config = ConfigDict(extra="allow")

    output: str  # the run folder
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    device: str = "auto"  # a GPU if there is one; or cpu, cuda, cuda:1
    # "official" repeats what the official code does by accident: the learning rate of the epoch before, one epoch too
    # many, one draw of points for a whole batch, decay of cls_pos, the tokenizer of Point-BERT in training mode.
    recipe: Literal["ours", "official"] = "ours"
    task: str | None = None  # the model's own
    init_from: str | None = None  # checkpoint to start from
    tokenizer: str | None = None  # checkpoint of the dvae whose tokens point_bert predicts
    data: Data
    model: Model
    ewa: Ewa | None = None
    average: Average | None = None
    probe: Probe | None = None
    augment: Augment = Augment()
    train: Train = Train()

    @property
    def trackers(self) -> dict[str, dict[str, Any]]:
        """The sections of the trackers that are not switched off."""
        sections = self.__pydantic_extra__ or {}
        return {name: section for name, section in sections.items() if section is not None}

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Experiment":
        if self.train.batch_size % self.train.accumulate:
            raise ValueError(
                f"train.accumulate={self.train.accumulate} does not divide train.batch_size={self.train.batch_size}"
            )
        if self.train.min_lr > self.train.lr:
            raise ValueError(f"train.min_lr={self.train.min_lr} is above train.lr={self.train.lr}")
        if self.train.slow_ffn and self.ewa:
            raise ValueError("train.slow_ffn with ewa: it is for dense models; set one of them to null")
        if self.augment.scale and self.augment.scale[0] > self.augment.scale[1]:
            raise ValueError(f"augment.scale={list(self.augment.scale)}; give the smaller factor first")
        if self.recipe == "official" and self.train.steps:
            raise ValueError(
                f"train.steps={self.train.steps} with recipe=official, which counts epochs; set train.epochs"
            )
        return self


def load_experiment(path: str | Path, overrides: list[str] | None = None) -> Experiment:
    """Read a YAML file, apply `key=value` overrides, check everything and fill in every default.

    Without `output` the run folder is `runs/` and the name of the file.

    Raises:
        ConfigError: in one line, every problem: dotted key, value, what is allowed or was meant.
    """
    content = read_yaml(path)
    content.setdefault("output", f"runs/{Path(path).stem}")
    return resolve(apply_overrides(content, overrides or []))


def resolve(content: dict[str, Any]) -> Experiment:
    """Check a config given as plain values, and fill in every default, those of model and dataset too."""
    check_size(content)
    problems = []
    try:
        experiment = Experiment.model_validate(content)
    except pydantic.ValidationError as error:
        problems.append(describe(error, Experiment))
    known = [*Experiment.model_fields, *TRACKERS]
    problems += [f"unknown key {str(key)!r}; {nearest(str(key), known)}" for key in content if key not in known]
    if problems:
        raise ConfigError("; ".join(problems))
    model = experiment.model
    model_class = choose("model.name", model.name, MODELS)
    defaults = getattr(model_class, "official_arguments", {}) if experiment.recipe == "official" else {}
    model_arguments = check_arguments(
        "model", model_class, defaults | model.arguments, skip=DECIDED_BY_DATA, beside=["name"]
    )
    _check_fit(model_class, model_arguments, experiment)
    probe = experiment.probe
    return experiment.model_copy(
        update={
            "task": experiment.task or model_class.task,
            "model": Model(name=model.name, **model_arguments),
            "data": _resolve_data(experiment.data, "data"),
            "ewa": experiment.ewa and _resolve_ewa(experiment.ewa),
            "probe": probe and probe.model_copy(update={"data": _resolve_data(probe.data, "probe.data")}),
            **{name: _resolve_tracker(name, content) for name in TRACKERS},
        }
    )


def _check_fit(model_class: type[Any], arguments: dict[str, Any], experiment: Experiment) -> None:
    """Refuse what would stop a run only once it is under way."""
    probe = experiment.probe
    for where, data in (("data", experiment.data), *([("probe.data", probe.data)] if probe else [])):
        for name in ("group_size", "num_groups", "levels"):
            value = arguments.get(name, 0)
            if (max(value) if isinstance(value, tuple) else value) > data.num_points:
                raise ConfigError(f"model.{name}={value} is above {where}.num_points={data.num_points}; lower it")
    if arguments.get("queue_size", math.inf) < experiment.train.batch_size:
        raise ConfigError(
            f"model.queue_size={arguments['queue_size']} is below train.batch_size={experiment.train.batch_size}, the "
            "keys of one step; raise it"
        )
    if probe and not hasattr(model_class, "features"):
        raise ConfigError(f"probe with model.name={experiment.model.name}, which has no features; set probe=null")


def _resolve_ewa(ewa: Ewa) -> Ewa:
    """Check the arguments of EWA, and fill in their defaults."""
    arguments = check_arguments("ewa", (upcycle, ExpertAverager), ewa.arguments, skip=DECIDED_BY_RUN)
    # `ewa/` alone knows which values are possible: they are tried on one FFN that takes no memory. Which layers there
    # are is for the real model to say.
    with torch.device("meta"):
        stand_in = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))})
        try:
            upcycle(stand_in, **arguments_of(upcycle, arguments) | {"layers": "all"})
            ExpertAverager(stand_in, total_steps=1, **arguments_of(ExpertAverager, arguments))
        except ValueError as error:  # the message begins with the argument
            raise ConfigError(f"ewa.{error}") from None
    return Ewa(**arguments)


def _resolve_tracker(name: str, content: dict[str, Any]) -> dict[str, Any] | None:
    """Check the section of a tracker, and fill in its defaults; None switches it off."""
    tracker = TRACKERS[name]
    section = content.get(name, {} if tracker.by_default else None)
    if section is None:
        return None
    if not isinstance(section, dict):
        raise ConfigError(f"{name}={section!r}: should be a section of keys, {{}} for the defaults, or null for none")
    return check_arguments(name, tracker, section, skip=["run"])


def _resolve_data(data: Data, where: str) -> Data:
    """Check the arguments of the dataset, and fill in their defaults."""
    loader = choose(f"{where}.name", data.name, DATASETS).load
    try:
        arguments = check_arguments(where, loader, data.arguments, skip=["split", "root"], beside=Data.model_fields)
    except ConfigError as error:
        if "unknown key" in str(error):  # it may be one of the dataset that the file names, not of the one asked for
            raise ConfigError(f'{error}; "{where}={{name: {data.name}}}" replaces the whole section') from None
        raise
    return Data(**data.model_dump(include=set(Data.model_fields)), **arguments)


def dump(experiment: Experiment) -> str:
    """The resolved experiment as YAML."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False)
