"""Floating-point operations of what runs, as torch's formulas count them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def flops_of(call: Callable[[], object]) -> int:
    """Call, and return the number of floating-point operations of its matrix products, convolutions and attention.

    A multiply-add is two operations. Modules run as they do without being counted. These are not counted: what torch
    has no formula for (products of a matrix and a vector, `addbmm`, LSTM, `Bilinear`), other threads, and attention for
    which the call chooses a backend itself.

    Example:
        >>> a, b = torch.ones(2, 3), torch.ones(3, 4)
        >>> flops_of(lambda: a @ b)
        48
    """
    # There is no formula for the fused attention kernel of CPUs. The math backend computes the same attention by matrix
    # products, which have one.
    with sdpa_kernel(SDPBackend.MATH), _no_fast_path(), _Counter() as counter:
        call()
    return counter.total


@contextmanager
def _no_fast_path() -> Iterator[None]:
    """Let torch's attention modules call products that have a formula, which their fast path at inference hides."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the operations of every operator that has a formula."""

    # FlopCounterMode has the same formulas, but hooks all modules to name them, and our patch encoder calls a module
    # that has hooks where it would compute the same with a quarter fewer products.

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func.overloadpacket)
        if formula is None:
            # In inference mode `linear` and the like arrive here whole, and their products would not.
            with self:
                output = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if output is NotImplemented else output
        output = func(*args, **kwargs)
        self.total += int(formula(*args, **kwargs, out_val=output))
        return output
