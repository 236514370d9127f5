"""Set up a run: build everything that trains, and raise any error before the first step."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from pc_ewa import ops
from pc_ewa.config import Experiment
from pc_ewa.data import digest
from pc_ewa.data.digest import Digest
from pc_ewa.errors import CheckpointError, ConfigError
from pc_ewa.ewa import ExpertAverager, upcycle, whole_copy
from pc_ewa.ewa.sharding import is_sharded
from pc_ewa.models import MODELS, create_model, load_pretrained
from pc_ewa.streams import stream
from pc_ewa.train.activations import checkpoint_activations
from pc_ewa.train.batches import INIT, Batches
from pc_ewa.train.compiled import check_compile
from pc_ewa.train.distributed import World, has_bf16
from pc_ewa.train.finite import GradientGuard, can_defer
from pc_ewa.train.objectives import Objective, create_objective
from pc_ewa.train.optim import create_optimizer, learning_rate, official_learning_rate
from pc_ewa.train.probe import SVMProbe
from pc_ewa.train.sharding import check_sharding, shard
from pc_ewa.train.splits import Splits, load_splits, to_device_if_it_fits
from pc_ewa.train.weight_average import WeightAverage
from pc_ewa.validation import arguments_of


class Setup(NamedTuple):
    """Everything that a run needs, from the data to the optimizer."""

    objective: Objective
    splits: Splits
    batches: Batches
    model: nn.Module
    optimizer: torch.optim.Optimizer
    guard: GradientGuard
    averager: ExpertAverager | None
    weight_average: WeightAverage | None
    total_steps: int
    learning_rate: Callable[[int], float]
    probe: SVMProbe | None
    model_arguments: dict[str, int]
    clouds: dict[str, Any]
    data: Digest
    notes: tuple[str, ...]

    def measured(self, step: int) -> nn.Module:
        """Return the model to measure and merge after `step` optimizer steps: the averaged one once averaging began."""
        model = self.weight_average.measured(step) if self.weight_average else self.model
        # Processes evaluate different samples, or one of them evaluates alone. A sharded model would need all processes
        # in every forward pass, so each gets a whole copy.
        return whole_copy(model) if is_sharded(model) else model


def digest_of(splits: Splits) -> Digest:
    """Return the digest of the splits that a run uses."""
    return digest({"train": splits.train, "test": splits.test, **({"val": splits.val} if splits.val else {})})


def build(experiment: Experiment, world: World) -> Setup:
    """Load the data, build the model, put experts into it, create the optimizer and the averager.

    Raises:
        Error: a problem with the config, the data or the checkpoints. Nothing was written or trained by then.
    """
    train = experiment.train
    objective = create_objective(experiment)
    slots = world.size * train.accumulate
    if train.batch_size % slots or train.batch_size // slots < 2:
        raise ConfigError(
            f"train.batch_size={train.batch_size} over {world.size} processes and {train.accumulate} accumulated "
            "steps; each must get an equal share of at least 2 samples"
        )
    check_initial_weights(experiment)
    check_compile(experiment, world)
    splits = load_splits(experiment.data, experiment.seed)
    seen = digest_of(splits)
    batches = Batches(to_device_if_it_fits(splits.train, world.device), experiment, slots, world.device)
    if batches.steps_per_epoch == 0:
        raise ConfigError(
            f"train.batch_size={train.batch_size} is above the {len(splits.train)} training samples; lower it"
        )
    epochs = train.epochs + (experiment.recipe == "official")  # the official code counts from 0 to the last inclusive
    total_steps = train.steps or epochs * batches.steps_per_epoch

    # All processes draw the same initial weights, so that DDP and FSDP2 start from one model. Experts come after the
    # initial weights (each expert copies a pretrained FFN), sharding after the experts, the optimizer last: it must
    # hold the final parameters.
    torch.manual_seed(stream(experiment.seed, INIT))
    decided = objective.model_arguments(splits)
    model = create_model(experiment.model.name, **experiment.model.arguments, **decided)
    notes = [describe_data(splits), *load_initial_weights(model, experiment)]
    put_experts(model, experiment)
    if train.checkpoint_activations:
        checkpoint_activations(model)
    sharded = place(model, experiment, world)
    optimizer = create_optimizer(model, train, decay_cls_pos=experiment.recipe == "official")
    deferred = can_defer(model, world.device)
    guard = GradientGuard(optimizer, world.device, deferred)
    averager = attach_averager(model, optimizer, experiment, total_steps, reads_found_inf=not deferred)
    extra = ", one more than asked, as in the official code" if experiment.recipe == "official" else ""
    notes.append(
        f"plan: {total_steps} steps of {train.batch_size} samples ({total_steps / batches.steps_per_epoch:.4g} epochs"
        f"{extra}) on {world.size} x {world.device.type}{sharded}"
        f"{f', compiled ({train.compile})' if train.compile else ''}"
    )
    if train.precision == "bf16" and world.device.type == "cpu" and not has_bf16():
        notes.append(
            "train.precision=bf16: this CPU has no instructions for it, and emulates it several times slower than fp32 "
            "runs; add train.precision=fp32"
        )
    if 20 * (left := len(splits.train) % train.batch_size) > len(splits.train):
        notes.append(
            f"{left} of {len(splits.train)} training samples sit out each epoch, others in each: "
            f"train.batch_size={train.batch_size} leaves no whole batch for them"
        )
    backend = ops.backend(world.device)
    notes.append(f"ops: {backend.name} ({backend.reason})")
    rate: Callable[[int], float] = (
        partial(official_learning_rate, steps_per_epoch=batches.steps_per_epoch, train=train)
        if experiment.recipe == "official"
        else partial(learning_rate, total_steps=total_steps, train=train)
    )
    weight_average = (
        WeightAverage(experiment, model, objective, batches, total_steps, world) if experiment.average else None
    )
    if weight_average:
        rate = weight_average.learning_rate(rate)
        notes.append(weight_average.describe())
    probe = SVMProbe(experiment, world.device) if experiment.probe else None
    return Setup(
        objective,
        splits,
        batches,
        model,
        optimizer,
        guard,
        averager,
        weight_average,
        total_steps,
        rate,
        probe,
        decided,
        objective.about(splits),
        seen,
        tuple(notes),
    )


def describe_data(splits: Splits) -> str:
    """Count the samples of each split, and the classes."""
    validation = f"{len(splits.val)} validation" if splits.val else "no validation"
    train, test = splits.train, splits.test
    return f"data: {len(train)} train, {validation}, {len(test)} test samples, {train.num_classes} classes"


def put_experts(model: nn.Module, experiment: Experiment) -> None:
    """Upcycle the model with the experiment's `ewa` section. Without the section the model stays dense."""
    ewa = experiment.ewa
    if ewa:
        try:
            upcycle(model, **arguments_of(upcycle, ewa.arguments))
        except ValueError as error:
            raise ConfigError(f"ewa: {error}") from None
        except (RuntimeError, MemoryError):  # torch cannot allocate the experts
            count = ewa.arguments["num_experts"]
            raise ConfigError(f"ewa.num_experts={count}: the experts do not fit into memory; lower it") from None


def place(model: nn.Module, experiment: Experiment, world: World) -> str:
    """Move the model to the device, whole or sharded according to `train.sharding`. Returns a note on the sharding.

    Raises:
        ConfigError: a model that these processes cannot shard.
    """
    if experiment.train.sharding == "none" or world.size == 1:
        model.to(world.device)
        return "" if experiment.train.sharding == "none" else ", whole: one process has no other to shard with"
    check_sharding(model, world)
    if dist.is_initialized():
        shard(model, world)
    else:  # `--check --processes N` in a single process
        model.to(world.device)
    return ", sharded (FSDP2)"


def attach_averager(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    experiment: Experiment,
    total_steps: int,
    reads_found_inf: bool = True,
) -> ExpertAverager | None:
    """Attach an averager of the experts to the optimizer, with the settings of the experiment's `ewa` section.

    Returns None without the section.
    """
    ewa = experiment.ewa
    if ewa is None:
        return None
    averager = ExpertAverager(model, total_steps=total_steps, **arguments_of(ExpertAverager, ewa.arguments))
    return averager.attach(optimizer, reads_found_inf=reads_found_inf)


def check_initial_weights(experiment: Experiment) -> None:
    """Check the initial weights of an experiment, and that its model takes the tokenizer and the experts.

    Raises:
        ConfigError: a model that needs a tokenizer and gets none, or two; a tokenizer, experts or a gate for a model
            that takes none.
        CheckpointError: an absent file.
    """
    name, start, tokenizer = experiment.model.name, experiment.init_from, experiment.tokenizer
    model_class = MODELS[name]
    needs_tokenizer = getattr(model_class, "needs_tokenizer", False)
    if needs_tokenizer and tokenizer and start:
        raise ConfigError(f"init_from={start} brings its own tokenizer; leave out tokenizer")
    if needs_tokenizer and not tokenizer and not start:
        raise ConfigError(
            f"tokenizer is missing: {name} predicts the tokens of a trained dvae; train one with "
            "pc-ewa train pretrain/dvae_shapenet55 and set tokenizer=CHECKPOINT"
        )
    if tokenizer and not needs_tokenizer:
        raise ConfigError(f"tokenizer={tokenizer}, but model.name={name} takes none; leave it out")
    if experiment.ewa and not hasattr(model_class, "expert_ffns"):
        raise ConfigError(f"ewa with model.name={name}, which has no FFN for experts; set ewa=null")
    refusal = getattr(model_class, "refuses_gate", None)
    if experiment.ewa and experiment.ewa.arguments["gate"] and refusal:
        raise ConfigError(f"ewa.gate with model.name={name}: {refusal}; set ewa.gate=null")
    for key, path in (("init_from", start), ("tokenizer", tokenizer)):
        if path and not Path(path).is_file():
            raise CheckpointError(f"{key}={path} is not a file; check the path of the checkpoint, or train it first")


def load_initial_weights(model: nn.Module, experiment: Experiment) -> list[str]:
    """Load the initial weights of the experiment. Returns lines on what was loaded.

    Raises:
        CheckpointError: a file that does not fit.
    """
    notes = []
    if experiment.tokenizer:
        dvae = model.get_submodule("dvae")
        notes.append(f"tokenizer: {experiment.tokenizer}: {load_pretrained(experiment.tokenizer, dvae).line}")
        # Also copies the patch encoder of the tokenizer into the backbone, as in the official code.
        model.load_tokenizer(dvae.state_dict())  # type: ignore[operator]
    if experiment.init_from:
        report = load_pretrained(experiment.init_from, model)
        notes.append(f"weights: {experiment.init_from}\n{report}")
    return notes
