"""From an experiment to everything that trains: all that can be wrong with it is found here, before the first step."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from pc_ewa import ops
from pc_ewa.config import Data, Experiment
from pc_ewa.data import Clouds, MissingSplitError, load_dataset
from pc_ewa.errors import ConfigError, DataError
from pc_ewa.ewa import ExpertAverager, upcycle
from pc_ewa.models import create_model, load_pretrained
from pc_ewa.signatures import choose
from pc_ewa.train.batches import INIT, Batches, stream
from pc_ewa.train.distributed import World
from pc_ewa.train.optim import create_optimizer
from pc_ewa.train.tasks import TASKS, Task


class Splits(NamedTuple):
    """The three parts of a dataset, and whether validation had to be cut from train."""

    train: Clouds
    val: Clouds
    test: Clouds
    val_is_cut: bool


class Setup(NamedTuple):
    """Everything a run needs."""

    task: Task
    splits: Splits
    batches: Batches
    model: nn.Module
    optimizer: torch.optim.Optimizer
    averager: ExpertAverager | None
    total_steps: int
    notes: tuple[str, ...]


def load_splits(data: Data, seed: int) -> Splits:
    """Load train, validation and test; without a "val" split, a stratified part of train becomes it."""
    arguments = {"root": Path(data.root), **data.arguments}
    train = load_dataset(data.name, "train", **arguments)
    test = load_dataset(data.name, "test", **arguments)
    for clouds in (train, test):
        if clouds.num_points < data.num_points:
            raise DataError(
                f"{data.name} has clouds of {clouds.num_points} points; data.num_points={data.num_points} is above that"
            )
    try:
        return Splits(train, load_dataset(data.name, "val", **arguments), test, val_is_cut=False)
    except MissingSplitError:
        train, val = train.split_validation(data.val_fraction, seed)
        return Splits(train, val, test, val_is_cut=True)


def build(experiment: Experiment, world: World) -> Setup:
    """Load the data, build the model, put experts into it, make the optimizer and the averager.

    Raises:
        Error: of the kind that names the problem; nothing has been written or trained by then.
    """
    train = experiment.train
    task = choose("task", experiment.task, TASKS)(experiment)
    slots = world.size * train.accumulate
    if train.batch_size % slots or train.batch_size // slots < 2:
        raise ConfigError(
            f"train.batch_size={train.batch_size} over {world.size} processes and {train.accumulate} accumulated "
            "steps; every part must be equal and have at least 2 shapes"
        )
    splits = load_splits(experiment.data, experiment.seed)
    batches = Batches(resident(splits.train, world.device), experiment, slots, world.device)
    if batches.steps_per_epoch == 0:
        raise ConfigError(
            f"train.batch_size={train.batch_size} is above the {len(splits.train)} training shapes; lower it"
        )
    total_steps = train.steps or train.epochs * batches.steps_per_epoch

    torch.manual_seed(stream(experiment.seed, INIT))
    model = create_model(experiment.model.name, **experiment.model.arguments, **task.model_arguments(splits.train))
    notes = [f"data: {len(splits.train)} train, {len(splits.val)} validation, {len(splits.test)} test shapes, "
             f"{splits.train.num_classes} classes"]  # fmt: skip
    if experiment.init_from:
        notes.append(f"weights: {experiment.init_from}: {load_pretrained(experiment.init_from, model)}")
    put_experts(model, experiment)
    model.to(world.device)
    optimizer = create_optimizer(model, train)
    averager = attach_averager(model, optimizer, experiment, total_steps)
    notes.append(
        f"plan: {total_steps} steps of {train.batch_size} shapes ({total_steps / batches.steps_per_epoch:.4g} epochs) "
        f"on {world.size} x {world.device.type}"
    )
    backend = ops.backend(world.device)
    notes.append(f"ops: {backend.name} ({backend.reason})")
    return Setup(task, splits, batches, model, optimizer, averager, total_steps, tuple(notes))


def resident(clouds: Clouds, device: torch.device) -> Clouds:
    """Move clouds to the GPU when they take less than a quarter of its free memory: batches are then drawn there."""
    fits = device.type == "cuda" and clouds.nbytes < torch.cuda.mem_get_info(device)[0] / 4
    return clouds.to(device) if fits else clouds


def put_experts(model: nn.Module, experiment: Experiment) -> None:
    """Upcycle the model as the experiment's `ewa` section says; none leaves it dense."""
    ewa = experiment.ewa
    if ewa:
        try:
            upcycle(model, ewa.num_experts, ewa.layers, ewa.init, ewa.partition)
        except ValueError as error:
            raise ConfigError(f"ewa: {error}") from None


def attach_averager(
    model: nn.Module, optimizer: torch.optim.Optimizer, experiment: Experiment, total_steps: int
) -> ExpertAverager | None:
    """Average the experts after every optimizer step, as the experiment's `ewa` section says."""
    ewa = experiment.ewa
    if ewa is None:
        return None
    averager = ExpertAverager(
        model,
        ewa.share_rate,
        ewa.schedule,
        total_steps,
        ramp=ewa.ramp,
        start=ewa.start,
        stop=ewa.stop,
        every=ewa.every,
    )
    return averager.attach(optimizer)
