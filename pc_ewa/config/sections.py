"""The sections of an experiment's config: keys, types, defaults, and what each key means."""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from pc_ewa.validation import refuse_switch

Fraction = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    """A section; the string below each key describes it, for the JSON Schema and for docs/config.md."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
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
    """Name of the dataset, a key of `pc_ewa.data.DATASETS`."""
    root: str = "datasets"
    """The folder with one folder for each dataset."""
    num_points: PositiveInt = 1024
    """Points of each cloud; larger clouds are cut."""
    sampling: Literal["farthest", "random"] = "farthest"
    """The way to cut them; "random" is for pre-training."""
    normalize: bool = True
    """Centre each cloud and scale it into the unit sphere."""
    val_fraction: Fraction = 0.1
    """Share of each class for validation where there is no "val" split. 0 trains on all, and the last step counts."""
    train_per_class: PositiveInt | None = None
    """Few shapes of each class: the same ones, whatever the seed of the run."""
    val_per_class: PositiveInt | None = None
    """In place of `val_fraction`; these shapes too are the same for every seed."""
    cv_folds: Annotated[int, Field(ge=2)] | None = None
    """Cross-validation: train and test are dealt anew into so many folds."""
    cv_fold: Annotated[int, Field(ge=0)] | None = None
    """The fold that is the test, from 0."""

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
    """Name of the network, a key of `pc_ewa.models.MODELS`."""


class Ewa(_OpenSection):
    """Experts weights averaging; every key is an argument of `pc_ewa.upcycle` or `pc_ewa.ExpertAverager`."""


class Average(_Section):
    """Averaging of the whole model over training (torch.optim.swa_utils): what is measured, saved and merged."""

    kind: Literal["ema", "swa"] = "ema"
    """Exponential mean of every step, or plain mean of the weights after each epoch."""
    decay: Fraction = 0.999
    """Of ema: the share of the average that stays at each step."""
    start: Fraction | None = None
    """Share of training before averaging begins; null: 0 for ema, 0.75 for swa."""
    lr: PositiveFloat | None = None
    """Of swa: learning rate from `start` on; null keeps the schedule."""

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

    scale: tuple[PositiveFloat, PositiveFloat] | None = (2 / 3, 3 / 2)
    """Range of the factor of each axis; null leaves the size."""
    isotropic: bool = False
    """One factor for all axes."""
    shift: NonNegativeFloat = 0.2
    """Largest move along each axis."""
    rotate: bool = False
    """Turn by any angle about the up axis."""
    jitter: NonNegativeFloat = 0.0
    """Standard deviation of the noise of each point."""


class SlowFfn(_Section):
    """A lower learning rate for some FFNs of a dense model, as if they were merged from experts (docs/theory.md)."""

    factor: PositiveFloat
    """Factor of the learning rate."""
    layers: str | list[int] = "every-2"
    """FFNs, counted as in the ewa section."""


class Train(_Section):
    """The loop; the defaults are Point-MAE's fine-tuning recipe, with a validation part cut from train."""

    epochs: PositiveInt = 300
    """Passes over the training part."""
    steps: PositiveInt | None = None
    """Optimizer steps, in place of epochs."""
    batch_size: Annotated[int, Field(ge=2)] = 32
    """Shapes of an optimizer step, over all processes."""
    accumulate: PositiveInt = 1
    """Parts that a process's batch is cut into, one after the other, to save memory."""
    lr: PositiveFloat = 5e-4
    """Learning rate after warm-up, before the cosine."""
    slow_ffn: SlowFfn | None = None
    """Of a dense model: FFNs with another learning rate."""
    min_lr: NonNegativeFloat = 1e-6
    """Learning rate where warm-up starts and the cosine ends."""
    warmup: Fraction = 1 / 30
    """Share of training in which the learning rate rises."""
    weight_decay: NonNegativeFloat = 0.05
    """Of AdamW; biases, norms and tokens have none."""
    clip_grad: PositiveFloat | None = 10.0
    """Largest norm of the gradient; null leaves gradients as they are."""
    label_smoothing: Fraction = 0.0
    """Share of the label that is spread over all classes."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is autocast: weights stay fp32."""
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None = None
    """Compile the training step by torch.compile in this mode; the last two replay it as CUDA graphs. null does not."""
    checkpoint_activations: bool = False
    """Compute activations twice: half the memory, a third more time."""
    sharding: Literal["none", "fsdp"] = "none"
    """Of several processes: each holds the whole model (DDP), or a share of it and of its optimizer (FSDP2)."""
    eval_every: PositiveInt = 1
    """Epochs from one validation to the next."""
    save_every: PositiveInt | None = None
    """Steps from one checkpoint to the next; null saves after each validation."""
    keep: PositiveInt = 2
    """Newest checkpoints that are kept, besides best.pt."""


class Probe(_Section):
    """A linear SVM on the frozen features while pre-training; it is logged, and never chooses a checkpoint."""

    data: Data
    """The dataset with the labels of the probe."""
    every: PositiveInt = 20
    """Epochs of pre-training from one probe to the next."""


class Experiment(_Section):
    """Everything a run depends on; config.yaml in a run folder shows it with every default.

    It also takes a section for each of TRACKERS, which plays no part in what is computed; null switches one off.
    """

    model_config = ConfigDict(extra="allow")

    output: str
    """The run folder; without it, `runs/` and the name of the file."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of all random numbers."""
    device: str = "auto"
    """A GPU if there is one; or cpu, cuda, cuda:1."""
    recipe: Literal["ours", "official"] = "ours"
    """"official" repeats what the official code does by accident: the learning rate of the epoch before, one epoch too
    many, one draw of points for a whole batch, decay of cls_pos, the tokenizer of Point-BERT in training mode."""
    task: str | None = None
    """The objective; null: that of the model."""
    init_from: str | None = None
    """Checkpoint to start from, official or ours."""
    tokenizer: str | None = None
    """Checkpoint of the dvae whose tokens point_bert predicts."""
    data: Data
    """The dataset."""
    model: Model
    """The network."""
    ewa: Ewa | None = None
    """Experts weights averaging; null trains the dense model."""
    average: Average | None = None
    """Averaging of the whole model; null for none."""
    probe: Probe | None = None
    """A linear SVM on the features while pre-training; null for none."""
    augment: Augment = Augment()
    """Random changes of each training cloud."""
    train: Train = Train()
    """The loop."""

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
