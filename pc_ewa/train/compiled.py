"""`train.compile`: the forward and backward pass of training, compiled by torch.compile."""

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

# Those that replay a step as CUDA graphs: the memory of gradients is that of the graph, and the next replay's too.
_GRAPHS = ("reduce-overhead", "max-autotune")


def check_compile(experiment: Experiment, world: World) -> None:
    """Find out whether the model can be compiled as `train.compile` asks, before any work.

    Raises:
        ConfigError: a model in shards, CUDA graphs with gradients that stay from one part of a batch or come from other
            processes, or a machine without the compiler that torch.compile needs.
    """
    mode, train = experiment.train.compile, experiment.train
    if mode is None:
        return
    asked = f"train.compile={mode}"
    if train.sharding != "none" and world.size > 1:
        raise ConfigError(f"{asked} with train.sharding={train.sharding}: shards are not compiled; set one to none")
    if mode in _GRAPHS and world.device.type == "cuda" and (train.accumulate > 1 or world.size > 1):
        what = f"train.accumulate={train.accumulate}" if train.accumulate > 1 else f"{world.size} processes"
        raise ConfigError(f"{asked} with {what}: CUDA graphs hold the gradients of one pass; use train.compile=default")
    if BACKEND == "inductor" and (problem := _lacks_compiler(world.device)):
        raise ConfigError(f"{asked}: {problem}; or set train.compile=null")


def compiled(model: nn.Module, experiment: Experiment) -> nn.Module:
    """Return a callable that runs the model compiled in training; parameters, keys and everything else stay its own.

    Evaluation calls the model itself, as it is.
    """
    if experiment.train.compile is None:
        return model
    # All batches of a training are of one size: sizes are constants to the compiler.
    options: dict[str, Any] = {"mode": experiment.train.compile} if BACKEND == "inductor" else {}
    return cast(nn.Module, torch.compile(model, backend=BACKEND, dynamic=False, **options))


@contextmanager
def compiled_pass(experiment: Experiment) -> Iterator[None]:
    """Hold the forward and backward pass of a model that may be compiled, one part of a batch.

    Raises:
        ConfigError: what the compiler raises, in the first pass if at all.
    """
    if experiment.train.compile is None:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException

    if experiment.train.compile in _GRAPHS:  # the outputs of the pass before are done with
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
    """Return what is missing for inductor: Triton on a GPU, a C++ compiler on a CPU."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "Triton is not there, or too old for this GPU; install the one of your torch"
    from torch._inductor import config

    wanted = config.cpp.cxx
    names = [name for name in (wanted if isinstance(wanted, (list, tuple)) else [wanted]) if name]
    return None if any(map(shutil.which, names)) else f"no C++ compiler is there ({', '.join(names)}); install g++"
