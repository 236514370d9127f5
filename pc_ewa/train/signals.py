"""Stop signals: a run saves before it exits."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

# A scheduler's end, Ctrl-C, a closed terminal, and Slurm's warning (sbatch --signal=USR1@60). Windows has only two.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect stop signals instead of exiting. A second Ctrl-C interrupts at once.

    A signal that was ignored before stays ignored, as SIGHUP under nohup. Python handles signals in the main thread
    only; in other threads none is collected.

    Yields:
        The signals received so far, in their order.
    """
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    handled = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in handled:
            signal.signal(number, note)
    except ValueError:  # not the main thread
        handled = {}
    try:
        yield received
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)


def first_signal(received: list[int], device: torch.device) -> int:
    """Return the stop signal that one of the processes received, 0 for none. All processes get the same number."""
    number = received[0] if received else 0
    if not dist.is_initialized():
        return number
    largest = torch.tensor(number, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest.item())
