"""From an experiment to everything that trains: all that can be wrong with it is found here, before the first step."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from pc_ewa import ops
from pc_ewa.config import Experiment
from pc_ewa.errors import ConfigError
from pc_ewa.ewa import ExpertAverager, upcycle
from pc_ewa.models import create_model
from pc_ewa.train.batches import INIT, Batches, stream
from pc_ewa.train.distributed import World
from pc_ewa.train.objectives import Objective, create_objective
from pc_ewa.train.optim import create_optimizer, learning_rate, official_learning_rate
from pc_ewa.train.probe import SVMProbe
from pc_ewa.train.splits import Splits, load_splits, to_device_if_it_fits
from pc_ewa.train.weight_average import WeightAverage
from pc_ewa.train.weights import check_initial_weights, load_initial_weights
from pc_ewa.validation import arguments_of


class Setup(NamedTuple):
    """Everything a run needs."""

    objective: Objective
    splits: Splits
    batches: Batches
    model: nn.Module
    optimizer: torch.optim.Optimizer
    averager: ExpertAverager | None
    weight_average: WeightAverage | None
    total_steps: int
    learning_rate: Callable[[int], float]
    probe: SVMProbe | None
    model_arguments: dict[str, int]
    notes: tuple[str, ...]

    def measured(self, step: int) -> nn.Module:
        """The model that is measured and merged after `step` optimizer steps: the averaged one, if there is one yet."""
        return self.weight_average.measured(step) if self.weight_average else self.model


def build(experiment: Experiment, world: World) -> Setup:
    """Load the data, build the model, put experts into it, make the optimizer and the averager.

    Raises:
        Error: of the kind that names the problem; nothing has been written or trained by then.
    """
    train = experiment.train
    objective = create_objective(experiment)
    slots = world.size * train.accumulate
    if train.batch_size % slots or train.batch_size // slots < 2:
        raise ConfigError(
            f"train.batch_size={train.batch_size} over {world.size} processes and {train.accumulate} accumulated "
            "steps; every part must be equal and have at least 2 shapes"
        )
    check_initial_weights(experiment)
    splits = load_splits(experiment.data, experiment.seed)
    batches = Batches(to_device_if_it_fits(splits.train, world.device), experiment, slots, world.device)
    if batches.steps_per_epoch == 0:
        raise ConfigError(
            f"train.batch_size={train.batch_size} is above the {len(splits.train)} training shapes; lower it"
        )
    epochs = train.epochs + (experiment.recipe == "official")  # theirs counts from 0 to the last one inclusive
    total_steps = train.steps or epochs * batches.steps_per_epoch

    torch.manual_seed(stream(experiment.seed, INIT))
    decided = objective.model_arguments(splits)
    model = create_model(experiment.model.name, **experiment.model.arguments, **decided)
    notes = [describe_data(splits), *load_initial_weights(model, experiment)]
    put_experts(model, experiment)
    model.to(world.device)
    optimizer = create_optimizer(model, train, decay_cls_pos=experiment.recipe == "official")
    averager = attach_averager(model, optimizer, experiment, total_steps)
    extra = ", one more than asked, as theirs" if experiment.recipe == "official" else ""
    notes.append(
        f"plan: {total_steps} steps of {train.batch_size} shapes ({total_steps / batches.steps_per_epoch:.4g} epochs"
        f"{extra}) on {world.size} x {world.device.type}"
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
        averager,
        weight_average,
        total_steps,
        rate,
        probe,
        decided,
        tuple(notes),
    )


def describe_data(splits: Splits) -> str:
    """Say how many shapes there are of what."""
    validation = f"{len(splits.val)} validation" if splits.val else "no validation"
    train, test = splits.train, splits.test
    return f"data: {len(train)} train, {validation}, {len(test)} test shapes, {train.num_classes} classes"


def put_experts(model: nn.Module, experiment: Experiment) -> None:
    """Upcycle the model as the experiment's `ewa` section says; none leaves it dense."""
    ewa = experiment.ewa
    if ewa:
        try:
            upcycle(model, **arguments_of(upcycle, ewa.arguments))
        except ValueError as error:
            raise ConfigError(f"ewa: {error}") from None


def attach_averager(
    model: nn.Module, optimizer: torch.optim.Optimizer, experiment: Experiment, total_steps: int
) -> ExpertAverager | None:
    """Average the experts after every optimizer step, as the experiment's `ewa` section says."""
    ewa = experiment.ewa
    if ewa is None:
        return None
    averager = ExpertAverager(model, total_steps=total_steps, **arguments_of(ExpertAverager, ewa.arguments))
    return averager.attach(optimizer)
