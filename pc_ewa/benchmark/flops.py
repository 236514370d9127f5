"""Floating-point operations, as torch counts them."""

from collections.abc import Callable

from torch.utils.flop_counter import FlopCounterMode


def flops_of(call: Callable[[], object]) -> int:
    """Call, and return the number of floating-point operations of its matrix products and attention.

    Example:
        >>> a, b = torch.ones(2, 3), torch.ones(3, 4)
        >>> flops_of(lambda: a @ b)
        48
    """
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())
