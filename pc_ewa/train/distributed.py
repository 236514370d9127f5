"""One process or many: this process among those of torchrun, and what all of them do together."""

import datetime
import inspect
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from pc_ewa import ops
from pc_ewa.errors import ConfigError, TrainingError
from pc_ewa.ewa.sharding import is_sharded
from pc_ewa.heap import freed_memory_kept

PATIENCE = datetime.timedelta(minutes=3)  # with a process that is silent in the middle of the work
LONG_PATIENCE = datetime.timedelta(hours=2)  # while one of them works alone, as on a linear SVM
ROLL_CALL = datetime.timedelta(seconds=10)  # for an answer when a collective has failed


class World(NamedTuple):
    """One process among all: `rank` of `size`, on `device`."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True for the process that writes files and prints."""
        return self.rank == 0


def is_main_process() -> bool:
    """Return True if this process prints; for code outside of `join_world`."""
    return int(os.environ.get("RANK", 0)) == 0


@contextmanager
def join_world(device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun started; without torchrun, be the only one.

    Raises:
        ConfigError: a device that this machine or torch does not have.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", 0)) if size > 1 else None)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size > 1:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        with freed_memory_kept() if chosen.type == "cpu" else nullcontext():
            yield World(rank, size, chosen)
    except RuntimeError as error:
        raise _with_absent_processes(error, World(rank, size, chosen)) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def others_wait(world: World) -> Iterator[None]:
    """Let the processes take different time over what stands in the block, up to two hours, then go on together.

    Elsewhere a process that is silent for 3 minutes is taken for dead.
    """
    yield
    if world.size > 1:
        patient = dist.new_group(backend="gloo", timeout=LONG_PATIENCE)
        dist.barrier(patient)
        dist.destroy_process_group(patient)


def _with_absent_processes(error: RuntimeError, world: World) -> Exception:
    """Turn the failure of a collective into a TrainingError that names the processes that do not answer.

    Each process that answers leaves its name in the store through which they found each other.
    """
    if world.size == 1 or "gloo" not in str(error):
        return error
    absent = [0]  # who may hold the store, and then nobody answers
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


def choose_device(device: str, local_rank: int | None = None) -> torch.device:
    """Turn "auto" (a GPU when there is one), "cpu", "cuda" or "cuda:1" into a device that exists and has its ops."""
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
    """Wrap a model so that its gradients are averaged over the processes; one process, or FSDP2, needs no wrapper."""
    if world.size == 1 or is_sharded(model):
        return model
    # Running statistics are averaged before they are used, not broadcast at every step. Newer torch renamed the switch.
    known = inspect.signature(DistributedDataParallel).parameters
    switch = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {switch: False}
    return DistributedDataParallel(model, **options)


def gradients_wait(parallel: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Put off the averaging of gradients over the processes until the `last` part of a batch.

    FSDP2 averages those of every part, and so need not keep them whole.
    """
    if last or not isinstance(parallel, DistributedDataParallel):
        return nullcontext()
    return parallel.no_sync()


def sync_batchnorm_statistics(model: nn.Module) -> None:
    """Average the running statistics of BatchNorm over the processes, each of which saw its own share of the batches.

    Statistics of frozen layers stay as they are: a mean of equal numbers is not always the number.
    """
    if dist.is_initialized():
        for module in model.modules():
            if isinstance(module, _BatchNorm) and module.training:
                for statistic in (module.running_mean, module.running_var):
                    if statistic is not None:
                        dist.all_reduce(statistic)
                        statistic /= dist.get_world_size()


def least_of_all(number: int, device: torch.device) -> int:
    """Return the least of the numbers that the processes give."""
    if not dist.is_initialized():
        return number
    least = torch.tensor(number, device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return int(least)


def check_replicas(model: nn.Module) -> None:
    """Raise TrainingError unless all processes hold the same weights, bit for bit, or shares of one model."""
    if dist.is_initialized() and not is_sharded(model):
        total = torch.stack([p.detach().double().sum() for p in model.parameters()]).sum()
        bounds = torch.stack([total, -total])  # the maximum of both is the largest and the smallest total
        dist.all_reduce(bounds, dist.ReduceOp.MAX)
        if bounds.sum() != 0:
            raise TrainingError("the processes hold different weights; this is a bug in pc-ewa: please report it")
