"""The sections of the config of an experiment: keys, types, defaults and descriptions."""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from pc_ewa.validation import refuse_switch

Fraction = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    """A section. The string below each key is its description in the JSON Schema and in docs/config.md."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
    _switch = pydantic.field_validator("*", mode="wrap")(refuse_switch)


class _OpenSection(_Section):
    """A section that also accepts the arguments of the named dataset or model; `resolve` validates them."""

    model_config = ConfigDict(extra="allow")

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the named dataset or model."""
        return dict(self.__pydantic_extra__ or {})


class Data(_OpenSection):
    """The dataset. Any other key is an argument of its loader (`path` of "hdf5", ...)."""

    name: str
    """Name of the dataset, a key of `pc_ewa.data.DATASETS`."""
    root: str = "datasets"
    """The folder with one folder for each dataset."""
    num_points: PositiveInt = 1024
    """Number of points of each cloud; larger clouds are subsampled."""
    sampling: Literal["farthest", "random"] = "farthest"
    """The subsampling; "random" is for pre-training."""
    normalize: bool = True
    """Centre each cloud and scale it into the unit sphere."""
    val_fraction: Fraction = 0.1
    """Share of each class for validation if there is no "val" split. 0 trains on all; the last step is evaluated."""
    train_per_class: PositiveInt | None = None
    """Number of training shapes of each class, the same shapes for every seed; null keeps all."""
    val_per_class: PositiveInt | None = None
    """Number of validation shapes of each class, in place of `val_fraction`; the same shapes for every seed."""
    cv_folds: Annotated[int, Field(ge=2)] | None = None
    """Number of cross-validation folds, into which train and test are divided again; null keeps the splits."""
    cv_fold: Annotated[int, Field(ge=0)] | None = None
    """Index of the fold that is the test split, from 0."""

    @pydantic.model_validator(mode="after")
    def _check_folds(self) -> "Data":
        fold, folds = self.cv_fold, self.cv_folds
        if (fold is None) != (folds is None):
            raise ValueError(f"cv_folds={folds} with cv_fold={fold}; set both, as in cv_folds=5 cv_fold=0, or none")
        if fold is not None and folds is not None and fold >= folds:
            raise ValueError(f"cv_fold={fold} of cv_folds={folds}; choose 0 to {folds - 1}")
        return self


class Model(_OpenSection):
    """The network. Any other key is one of its arguments (`dim`, `depth`, ...)."""

    name: str
    """Name of the network, a key of `pc_ewa.models.MODELS`."""


class Ewa(_OpenSection):
    """Experts weights averaging. Every key is an argument of `pc_ewa.upcycle` or `pc_ewa.ExpertAverager`."""


class Average(_Section):
    """Averaging of the whole model (torch.optim.swa_utils). The average is evaluated, saved and merged."""

    kind: Literal["ema", "swa"] = "ema"
    """Exponential moving average over steps, or plain mean of the weights after each epoch."""
    decay: Fraction = 0.999
    """Decay of ema: the share of the average that is kept at each step."""
    start: Fraction | None = None
    """Share of training before averaging begins; null is 0 for ema and 0.75 for swa."""
    lr: PositiveFloat | None = None
    """Learning rate of swa from `start` on; null keeps the schedule."""

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
    """Random augmentation of each training cloud. The defaults are the fine-tuning recipe of Point-MAE."""

    scale: tuple[PositiveFloat, PositiveFloat] | None = (2 / 3, 3 / 2)
    """Range of the scale factor of each axis; null does not scale."""
    isotropic: bool = False
    """Use one scale factor for all axes."""
    shift: NonNegativeFloat = 0.2
    """Largest translation along each axis."""
    rotate: bool | Literal["freely"] = False
    """true: rotate by a random angle about the up axis; "freely": by any rotation, for scans that lie as they like."""
    jitter: NonNegativeFloat = 0.0
    """Standard deviation of the noise on each point."""


class SlowFfn(_Section):
    """A lower learning rate for some FFNs of a dense model, as if they were merged from experts (docs/theory.md)."""

    factor: PositiveFloat
    """Factor of the learning rate."""
    layers: str | list[int] = "every-2"
    """FFNs, counted as in the ewa section."""


class Train(_Section):
    """The training loop. The defaults are the fine-tuning recipe of Point-MAE, with a validation part from train."""

    epochs: PositiveInt = 300
    """Passes over the training split."""
    steps: PositiveInt | None = None
    """Optimizer steps, in place of epochs."""
    batch_size: Annotated[int, Field(ge=2)] = 32
    """Shapes per optimizer step, over all processes."""
    accumulate: PositiveInt = 1
    """Micro-batches per optimizer step, to save memory; it must divide `batch_size`."""
    lr: PositiveFloat = 5e-4
    """Peak learning rate, after warm-up and before the cosine."""
    slow_ffn: SlowFfn | None = None
    """FFNs of a dense model with another learning rate; null for none."""
    min_lr: NonNegativeFloat = 1e-6
    """Learning rate where warm-up starts and the cosine ends."""
    warmup: Fraction = 1 / 30
    """Share of training for the warm-up of the learning rate."""
    weight_decay: NonNegativeFloat = 0.05
    """Weight decay of AdamW, without biases, norms and tokens."""
    clip_grad: PositiveFloat | None = 10.0
    """Largest norm of the gradient; null does not clip."""
    label_smoothing: Fraction = 0.0
    """Label smoothing: the share of the label that is spread over all classes."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """"bf16" is autocast; the weights stay fp32."""
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None = None
    """Mode of torch.compile for the training step. The last two replay it as CUDA graphs. null does not compile."""
    checkpoint_activations: bool = False
    """Recompute activations in the backward pass: half the memory, a third more time."""
    sharding: Literal["none", "fsdp"] = "none"
    """With several processes: replicate the model (DDP), or shard it and its optimizer (FSDP2)."""
    eval_every: PositiveInt = 1
    """Epochs between validations."""
    save_every: PositiveInt | None = None
    """Steps between checkpoints; null saves after each validation."""
    keep: PositiveInt = 2
    """Number of the newest checkpoints to keep, in addition to best.pt."""


class Probe(_Section):
    """A linear SVM on the frozen features during pre-training. Its metric is logged, and never selects a checkpoint."""

    data: Data
    """The labelled dataset of the probe."""
    every: PositiveInt = 20
    """Epochs of pre-training between probes."""


class Experiment(_Section):
    """The whole config of a run. config.yaml in the run folder has it with every default.

    It also accepts a section for each of TRACKERS, which does not affect the computation; null switches a tracker off.
    """

    model_config = ConfigDict(extra="allow")

    output: str
    """The run folder. The default is `runs/` and the name of the file."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of all random numbers."""
    device: str = "auto"
    """"auto" is a GPU if there is one; or cpu, cuda, cuda:1."""
    recipe: Literal["ours", "official"] = "ours"
    """"official" repeats accidents of the official code: the learning rate of the previous epoch, one epoch too many,
    one draw of points for a whole batch, weight decay of cls_pos, the tokenizer of Point-BERT in training mode."""
    task: str | None = None
    """The objective; null is that of the model."""
    init_from: str | None = None
    """Checkpoint of the initial weights, official or ours; null starts from scratch."""
    tokenizer: str | None = None
    """Checkpoint of the dVAE whose tokens point_bert predicts."""
    data: Data
    """The dataset."""
    model: Model
    """The network."""
    ewa: Ewa | None = None
    """Experts weights averaging; null trains the dense model."""
    average: Average | None = None
    """Averaging of the whole model; null for none."""
    probe: Probe | None = None
    """A linear SVM on the features during pre-training; null for none."""
    augment: Augment = Augment()
    """Random augmentation of each training cloud."""
    train: Train = Train()
    """The training loop."""

    @property
    def trackers(self) -> dict[str, dict[str, Any]]:
        """Sections of the trackers that are not switched off."""
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
