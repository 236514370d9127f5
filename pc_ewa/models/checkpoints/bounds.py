"""Bounds on a model that a file describes: its config may ask for more than any memory holds."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as hooks

from pc_ewa.errors import CheckpointError

_SLACK = 10_000_000  # numbers; below that a model costs nothing, and a misfit gets a better message when it is loaded


def refuse_depth(arguments: Mapping[str, Any], tensors: int, path: str | Path) -> None:
    """Refuse more blocks than a file has tensors: models make lists as long as their depth before any layer.

    Args:
        arguments: of the model, as a file describes it.
        tensors: how many the file has.
        path: the file.

    Raises:
        CheckpointError: a depth above it.
    """
    for key, value in arguments.items():
        if key.endswith("depth") and isinstance(value, int) and value > tensors:
            raise CheckpointError(f"{path} does not fit model.{key}={value} of its config: it has {tensors} tensors")


@contextmanager
def no_larger_than(weights: Collection[Tensor], path: str | Path) -> Iterator[None]:
    """Refuse to build a model far larger than the weights of the file that describes it, before memory is touched.

    Args:
        weights: of the file. Every weight of the model is among them.
        path: the file.

    Raises:
        CheckpointError: the model has more.
    """
    most_numbers, most_modules = 2 * sum(w.numel() for w in weights) + _SLACK, 20 * len(weights) + 1000
    numbers = modules = 0

    def refuse() -> CheckpointError:
        has = f"{len(weights)} tensors of {sum(w.numel() for w in weights):,} numbers"
        return CheckpointError(f"{path} does not fit the model in its config, which is far larger than its {has}")

    # A tensor is registered before it is initialised, so that its memory is only reserved by then.
    def count_numbers(module: nn.Module, name: str, value: Tensor | None) -> None:
        nonlocal numbers
        numbers += 0 if value is None else value.numel()
        if numbers > most_numbers:
            raise refuse()

    def count_modules(module: nn.Module, name: str, value: nn.Module | None) -> None:
        nonlocal modules
        modules += 1
        if modules > most_modules:
            raise refuse()

    handles = (
        hooks.register_module_parameter_registration_hook(count_numbers),
        hooks.register_module_buffer_registration_hook(count_numbers),
        hooks.register_module_module_registration_hook(count_modules),
    )
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch cannot even reserve it
        if isinstance(error, MemoryError) or "alloc" in str(error) or "overflow" in str(error):
            raise refuse() from None
        raise
    finally:
        for handle in handles:
            handle.remove()
