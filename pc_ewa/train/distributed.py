"""One process or many: the place of this process among those of torchrun, and collective operations."""

import datetime
import inspect
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from pc_ewa import ops
from pc_ewa.errors import ConfigError, TrainingError
from pc_ewa.ewa.sharding import is_sharded
from pc_ewa.heap import freed_memory_kept
from pc_ewa.text import printable

PATIENCE = datetime.timedelta(minutes=3)  # timeout of a collective during training
LONG_PATIENCE = datetime.timedelta(hours=2)  # timeout while one process works alone, as on a linear SVM
ROLL_CALL = datetime.timedelta(seconds=10)  # timeout of an answer after a collective has failed


class World(NamedTuple):
    """One process among all: `rank` of `size`, on `device`."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True for the process that writes files and prints."""
        return self.rank == 0


class Place(NamedTuple):
    """The place of this process among others, as torchrun or a scheduler set it."""

    rank: int
    local_rank: int
    size: int


def place_among_processes() -> Place:
    """Read RANK, LOCAL_RANK and WORLD_SIZE. Without them there is one process.

    Raises:
        ConfigError: values that are not whole numbers, a RANK outside of WORLD_SIZE, or several processes without RANK.
    """
    defaults = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    texts = {key: os.environ.get(key, default) for key, default in defaults.items()}
    told = " ".join(f"{key}={printable(text, 20)}" for key, text in texts.items())
    remedy = "start the processes by torchrun, which sets them, or unset all three"
    if not all(text.isascii() and text.isdigit() for text in texts.values()):
        raise ConfigError(f"{told}: expected whole numbers; {remedy}")
    place = Place(*map(int, texts.values()))
    if place.size > 1 and "RANK" not in os.environ:
        raise ConfigError(f"WORLD_SIZE={place.size} without RANK; {remedy}")
    if place.rank >= place.size:
        raise ConfigError(f"{told}: RANK counts from 0 to WORLD_SIZE - 1; {remedy}")
    return place


def is_main_process() -> bool:
    """Return True if this process prints. For code outside of `join_world`."""
    return place_among_processes().rank == 0


def alone(device: str = "auto", processes: int = 1) -> World:
    """Return the place of this process without joining the others, for checks that need no collective.

    Args:
        device: see `choose_device`.
        processes: number of processes of the run; 1 leaves it to WORLD_SIZE.

    Raises:
        ConfigError: a device that this machine or torch does not have, or an invalid RANK or WORLD_SIZE.
    """
    place = place_among_processes()
    chosen = choose_device(device, place.local_rank if place.size > 1 else None)
    return World(place.rank, processes if processes > 1 else place.size, chosen)


@contextmanager
def join_world(device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun started. Without torchrun this process is the only one.

    Raises:
        ConfigError: a device that this machine or torch does not have, or processes that cannot find each other.
    """
    world = alone(device)
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    if world.size > 1:
        if missing := [key for key in ("MASTER_ADDR", "MASTER_PORT") if key not in os.environ]:
            raise ConfigError(
                f"WORLD_SIZE={world.size} without {' and '.join(missing)}: start the processes by torchrun, which sets "
                "them, or unset WORLD_SIZE"
            )
        _join(world)
    try:
        # On the CPU glibc returns each large activation to the system and faults it in again at the next step.
        with freed_memory_kept() if world.device.type == "cpu" else nullcontext():
            yield world
    except RuntimeError as error:
        raise _with_absent_processes(error, world) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _join(world: World) -> None:
    """Initialise the process group, with keys in torchrun's store that no earlier attempt has written.

    torchrun keeps one store over all its restarts, with the addresses of dead processes in it. Restarted processes
    could then wait for them, or be refused. A prefix with the number of the attempt avoids that race.
    """
    options: dict[str, Any] = {}
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store, rank, size = next(dist.rendezvous("env://", timeout=PATIENCE))  # type: ignore[attr-defined]
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        own = dist.PrefixStore(f"attempt-{attempt}", store)  # type: ignore[attr-defined]
        options = {"store": own, "rank": rank, "world_size": size}
    backend = "nccl" if world.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE, **options)


@contextmanager
def others_wait(world: World) -> Iterator[None]:
    """Let the processes take different times over the block, up to two hours, then synchronise them.

    Elsewhere a collective fails after 3 minutes without an answer.
    """
    yield
    if world.size > 1:
        # A timeout belongs to a group, so the long one needs a separate group. gloo, because an NCCL barrier spins on
        # the GPU, which the working process may be using.
        patient = dist.new_group(backend="gloo", timeout=LONG_PATIENCE)
        dist.barrier(patient)
        dist.destroy_process_group(patient)


def _with_absent_processes(error: RuntimeError, world: World) -> Exception:
    """Turn the failure of a collective into a TrainingError that names the processes without an answer.

    Each living process sets a key in the store of the rendezvous. Other errors are returned as they are.
    """
    if world.size == 1 or "gloo" not in str(error):
        return error
    absent = [0]  # rank 0 may hold the store: if the store does not answer, rank 0 is the one that is absent
    with suppress(RuntimeError):
        store = dist.distributed_c10d._get_default_store()
        store.set_timeout(ROLL_CALL)
        store.set(f"present/{world.rank}", "")
        time.sleep(ROLL_CALL.total_seconds())
        absent = [rank for rank in range(world.size) if not store.check([f"present/{rank}"])]
    if not absent:
        return error
    who = f"process {absent[0]} of {world.size} does" if len(absent) == 1 else f"processes {absent} do"
    remedy = "see to the machine, then the same command goes on from the newest checkpoint"
    return TrainingError(f"{who} not answer, frozen or dead; {remedy}")


def has_bf16() -> bool:
    """Return True for a CPU with instructions for bf16. Without AVX-512, bf16 is several times slower than fp32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def choose_device(device: str, local_rank: int | None = None) -> torch.device:
    """Turn "auto" (a GPU when there is one), "cpu", "cuda" or "cuda:1" into a device that exists and has our ops.

    Raises:
        ConfigError: another text, a GPU that this machine does not have, or PC_EWA_OPS with a backend it cannot use.
    """
    chosen = _existing_device(device, local_rank)
    try:
        ops.backend(chosen)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return chosen


def _existing_device(device: str, local_rank: int | None) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device={device!r}; choose auto, cpu, cuda or cuda:N") from None
    if chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"device={device!r}; choose auto, cpu, cuda or cuda:N")
    if chosen.type == "cpu":
        return chosen
    index = local_rank if local_rank is not None else chosen.index or 0
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"device={device!r} asks for GPU {index}; this machine has {torch.cuda.device_count()}: set device=cpu"
        )
    return torch.device("cuda", index)


def parallel_model(model: nn.Module, world: World) -> nn.Module:
    """Wrap a model so that its gradients are averaged over the processes. One process or FSDP2 needs no wrapper."""
    if world.size == 1 or is_sharded(model):
        return model
    # DDP broadcasts buffers from rank 0 before each forward pass: that costs a collective a step and discards the
    # statistics of all other ranks. We average them where they are used, see `sync_batchnorm_statistics`. Newer torch
    # renamed the switch.
    known = inspect.signature(DistributedDataParallel).parameters
    switch = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {switch: False}
    return DistributedDataParallel(model, **options)


def gradients_wait(parallel: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Skip the all-reduce of gradients in all micro-batches of a step but the `last`.

    FSDP2 reduces in every micro-batch, because unreduced gradients would have to be kept unsharded.
    """
    if last or not isinstance(parallel, DistributedDataParallel):
        return nullcontext()
    return parallel.no_sync()


def sync_batchnorm_statistics(model: nn.Module) -> None:
    """Average the running statistics of BatchNorm over the processes. Each of them saw another share of the batches.

    Statistics of frozen layers are not averaged: the rounded mean of equal numbers is not always that number.
    """
    if dist.is_initialized():
        for module in model.modules():
            if isinstance(module, _BatchNorm) and module.training:
                for statistic in (module.running_mean, module.running_var):
                    if statistic is not None:
                        dist.all_reduce(statistic)
                        statistic /= dist.get_world_size()


def least_of_all(number: int, device: torch.device) -> int:
    """Return the smallest of the numbers of all processes."""
    if not dist.is_initialized():
        return number
    least = torch.tensor(number, device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return int(least)


def mean_of_all(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Average numbers over the processes, which must all have the same names. One process gets its own numbers back."""
    if not dist.is_initialized() or not values:
        return values
    # NCCL reduces tensors on the GPU only, and some values (the learning rate) are on the CPU. One stacked tensor makes
    # it one collective.
    device = next((value.device for value in values.values() if value.device.type != "cpu"), torch.device("cpu"))
    means = torch.stack([value.detach().double().to(device) for value in values.values()])
    dist.all_reduce(means)
    means /= dist.get_world_size()
    return {name: mean.to(value) for (name, value), mean in zip(values.items(), means, strict=True)}


def check_replicas(model: nn.Module) -> None:
    """Raise TrainingError unless all processes hold the same weights, bit for bit. A sharded model is not checked."""
    if dist.is_initialized() and not is_sharded(model):
        # Equal weights have equal sums, as every process adds in the same order. One MAX of (sum, -sum) yields the
        # largest and the smallest sum.
        total = torch.stack([p.detach().double().sum() for p in model.parameters()]).sum()
        bounds = torch.stack([total, -total])
        dist.all_reduce(bounds, dist.ReduceOp.MAX)
        if bounds.sum() != 0:
            raise TrainingError("the processes hold different weights; this is a bug in pc-ewa: please report it")
