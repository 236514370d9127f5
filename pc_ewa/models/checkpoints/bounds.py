"""Bounds on a model that a file describes: a damaged or hostile config could exhaust the memory."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as hooks

from pc_ewa.errors import CheckpointError

# Numbers beyond those of the file. A model of this size is cheap, and a misfit gets a better message when it is loaded.
_SLACK = 10_000_000


def refuse_depth(arguments: Mapping[str, Any], tensors: int, path: str | Path) -> None:
    """Refuse a model with more blocks than its file has tensors.

    `no_larger_than` is too late for this: models make a list as long as their depth before they make any layer.

    Args:
        arguments: arguments of the model, as a file describes it.
        tensors: number of tensors in the file.
        path: the file.

    Raises:
        CheckpointError: the depth is larger than the number of tensors.
    """
    for key, value in arguments.items():
        if key.endswith("depth") and isinstance(value, int) and value > tensors:
            raise CheckpointError(f"{path} does not fit model.{key}={value} of its config: it has {tensors} tensors")


@contextmanager
def no_larger_than(weights: Collection[Tensor], path: str | Path) -> Iterator[None]:
    """Refuse, in a `with` block, to build a model far larger than the weights of the file that describes it.

    The refusal comes before the memory is used.

    Args:
        weights: weights of the file. They include every weight of the model.
        path: the file.

    Raises:
        CheckpointError: the model has far more weights or modules.
    """
    # Twice the numbers and 20 modules for each tensor leave room for models that share weights or have no weights in
    # many of their modules. The bound is for sizes that no machine can hold, not for a check of the architecture.
    most_numbers, most_modules = 2 * sum(w.numel() for w in weights) + _SLACK, 20 * len(weights) + 1000
    numbers = modules = 0

    def refuse() -> CheckpointError:
        has = f"{len(weights)} tensors of {sum(w.numel() for w in weights):,} numbers"
        return CheckpointError(f"{path} does not fit the model of the config, which is far larger than its {has}")

    # A parameter is registered before it is initialised. Until then its memory is reserved but not used.
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
    except (MemoryError, RuntimeError) as error:  # torch cannot even reserve the memory of one tensor
        if isinstance(error, MemoryError) or "alloc" in str(error) or "overflow" in str(error):
            raise refuse() from None
        raise
    finally:
        for handle in handles:
            handle.remove()
