"""`train.compile`: compile the forward and backward pass of training with torch.compile."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from pc_ewa.config import Experiment
from pc_ewa.errors import ConfigError
from pc_ewa.train.distributed import World

BACKEND = "inductor"

# Modes that replay a step as CUDA graphs. The gradients live in the memory pool of the graph, which the next replay
# overwrites: they can neither be accumulated over micro-batches nor be all-reduced by DDP.
_GRAPHS = ("reduce-overhead", "max-autotune")


def check_compile(experiment: Experiment, world: World) -> None:
    """Check that the model can be compiled with `train.compile`, before any work.

    Raises:
        ConfigError: a sharded model; checkpointed activations; CUDA graphs with gradient accumulation or several
        processes; or a machine without the compiler that torch.compile needs.
    """
    mode, train = experiment.train.compile, experiment.train
    if mode is None:
        return
    asked = f"train.compile={mode}"
    if train.sharding != "none" and world.size > 1:
        raise ConfigError(f"{asked} with train.sharding={train.sharding}: shards are not compiled; set one to none")
    if train.checkpoint_activations:
        raise ConfigError(f"{asked} with train.checkpoint_activations=true: torch cannot compile it; set one off")
    if mode in _GRAPHS and world.device.type == "cuda" and (train.accumulate > 1 or world.size > 1):
        what = f"train.accumulate={train.accumulate}" if train.accumulate > 1 else f"{world.size} processes"
        raise ConfigError(f"{asked} with {what}: CUDA graphs hold the gradients of one pass; use train.compile=default")
    if BACKEND == "inductor" and (problem := _lacks_compiler(world.device)):
        raise ConfigError(f"{asked}: {problem}; or set train.compile=null")


def compiled(model: nn.Module, experiment: Experiment) -> nn.Module:
    """Return a compiled wrapper of the model for training, or the model itself without `train.compile`.

    Parameters and the keys of the state_dict are those of the model. Evaluation calls the uncompiled model.
    """
    if experiment.train.compile is None:
        return model
    # All micro-batches of a run have one shape. With dynamic=False torch compiles once for it, instead of a second time
    # with symbolic sizes, which are slower.
    options: dict[str, Any] = {"mode": experiment.train.compile} if BACKEND == "inductor" else {}
    return cast(nn.Module, torch.compile(model, backend=BACKEND, dynamic=False, **options))


@contextmanager
def compiled_pass(experiment: Experiment) -> Iterator[None]:
    """Wrap the forward and backward pass of one micro-batch of a model that may be compiled.

    Raises:
        ConfigError: torch cannot compile the model; raised in the first pass.
    """
    if experiment.train.compile is None:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException

    if experiment.train.compile in _GRAPHS:
        # Declares the outputs of the previous replay dead, so that their memory may be overwritten by this one.
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
    try:
        yield
    except TorchDynamoException as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"train.compile={experiment.train.compile}: torch cannot compile {experiment.model.name} here: {reason}; "
            "set train.compile=null"
        ) from error


def _lacks_compiler(device: torch.device) -> str | None:
    """Return what inductor lacks: Triton on a GPU, a C++ compiler on a CPU. None if nothing is missing."""
    if device.type == "cuda":
        # Private, as torch has no public question for it; it also checks the compute capability of the GPU.
        from torch.utils._triton import has_triton

        return None if has_triton() else "Triton is not there, or too old for this GPU; install the one of your torch"
    # The compilers in the order in which inductor tries them, the variable CXX included; None stands for a download.
    from torch._inductor import config

    wanted = config.cpp.cxx
    names = [name for name in (wanted if isinstance(wanted, (list, tuple)) else [wanted]) if name]
    return None if any(map(shutil.which, names)) else f"no C++ compiler is there ({', '.join(names)}); install g++"
