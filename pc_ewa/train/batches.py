"""Batches as a pure function of (seed, step, slot): a checkpoint stores no state of a data loader."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from pc_ewa import ops
from pc_ewa.config import Augment, Data, Experiment
from pc_ewa.data import Clouds, UpAxis, transforms
from pc_ewa.streams import stream
from pc_ewa.train.distributed import World

# The purposes of random streams: the second number of each, after the seed. Streams are independent, so that one more
# draw in one of them (an augmentation, say) leaves all others as they are.
INIT, ORDER, AUGMENT, MODEL, ROUTED, STATISTICS = range(6)


class Batch(NamedTuple):
    """Points (B, N, 3), the class of each cloud (B,), and the part of each point (B, N); None without part labels."""

    points: Tensor
    labels: Tensor
    parts: Tensor | None = None


class Batches:
    """A source of augmented batches on the device.

    A global batch consists of `slots` micro-batches, one for each process and accumulation step. The samples of a
    micro-batch, their augmentation and the random numbers of the model depend on (seed, step, slot) alone. Therefore 2
    processes draw the same micro-batches as 1 process that accumulates 2 steps.

    Args:
        clouds: the training split.
        experiment: its batch size, sampling and augmentation.
        slots: number of micro-batches. A run that resumes with fewer processes keeps it, see `Batches.keep`.
        device: of the batches.
    """

    def __init__(self, clouds: Clouds, experiment: Experiment, slots: int, device: torch.device) -> None:
        self.clouds, self.experiment, self.slots, self.device = clouds, experiment, slots, device

    @property
    def steps_per_epoch(self) -> int:
        """Number of whole batches in one epoch. The remainder is dropped; it differs from epoch to epoch."""
        return len(self.clouds) // self.experiment.train.batch_size

    def of(self, world: World) -> range:
        """Return the slots of one process, which it processes in this order."""
        count = self.slots // world.size
        return range(world.rank * count, (world.rank + 1) * count)

    def keep(self, slots: int | None) -> None:
        """Keep the number of slots of the checkpoint, if the current number of processes divides it.

        The losses then stay those of the run before. None, from a checkpoint of an earlier version, changes nothing.
        """
        processes = self.slots // self.experiment.train.accumulate
        if slots and slots % processes == 0:
            self.slots = slots

    def draw(self, step: int, slot: int) -> Batch:
        """Draw one micro-batch of this step: B / slots samples of `num_points` points."""
        epoch, place = divmod(step, self.steps_per_epoch)
        size = self.experiment.train.batch_size
        order = _epoch_order(len(self.clouds), stream(self.experiment.seed, ORDER, epoch), self.clouds.points.device)
        # All slots cut the same permutation, so no sample is drawn twice in an epoch, by however many processes.
        indices = order[place * size : (place + 1) * size].chunk(self.slots)[slot]
        points, labels = (tensor.to(self.device, non_blocking=True) for tensor in self.clouds.batch(indices))
        parts = None if self.clouds.parts is None else self.clouds.part_labels(indices)
        parts = None if parts is None else parts.to(self.device, non_blocking=True)
        generator = torch.Generator(self.device).manual_seed(stream(self.experiment.seed, AUGMENT, step, slot))
        shared_draw = self.experiment.recipe == "official"
        points, index = sample_points(points, self.experiment.data, generator, shared_draw)
        if parts is not None and index is not None:
            parts = parts.gather(1, index)
        return Batch(augment(points, self.experiment.augment, self.clouds.up_axis, generator), labels, parts)

    def seed_model(self, step: int, slot: int) -> None:
        """Seed the draws of the model on this micro-batch: dropout, drop path, masks, routes of tokens to experts."""
        torch.manual_seed(stream(self.experiment.seed, MODEL, step, slot))


def sample_points(
    points: Tensor, data: Data, generator: torch.Generator, shared_draw: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Normalise each cloud and sample `num_points` from it.

    Returns the points and their indices. The indices are None if no point was dropped.

    `shared_draw`: see `transforms.train_index`.
    """
    # The order of the two operations is that of the official code: pre-training samples, then normalises; fine-tuning
    # normalises, then samples. The centre and the scale differ between the two.
    if data.sampling == "random":
        index = transforms.random_index(points, data.num_points, generator)
        points = ops.gather_points(points, index)
        return transforms.normalize_unit_sphere(points) if data.normalize else points, index
    points = transforms.normalize_unit_sphere(points) if data.normalize else points
    if points.shape[1] == data.num_points:
        return points, None
    index = transforms.train_index(points, data.num_points, generator, shared_draw)
    return ops.gather_points(points, index), index


def augment(points: Tensor, how: Augment, up_axis: UpAxis, generator: torch.Generator) -> Tensor:
    """Apply the augmentations of the experiment, in the order rotate, scale and shift, jitter."""
    if how.rotate == "freely":
        points = transforms.rotate_freely(points, generator)
    elif how.rotate:
        points = transforms.rotate(points, generator, up_axis)
    if how.scale or how.shift:
        points = transforms.scale_and_translate(points, generator, how.scale or (1.0, 1.0), how.shift, how.isotropic)
    if how.jitter:
        points = transforms.jitter(points, generator, std=how.jitter)
    return points


@lru_cache(maxsize=2)
def _epoch_order(count: int, seed: int, device: torch.device) -> Tensor:
    """Return the permutation of an epoch on the device of the clouds."""
    # Drawn on the CPU: the generators of CPU and GPU give other numbers for the same seed. Cached, because every step
    # of the epoch slices it; two entries, because SWA draws from a second stream in between.
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order.to(device, non_blocking=True)
