"""`python -m pc_ewa.train.launch`: torchrun with the exit code of the training in it.

torchrun exits with 1 and a traceback, whatever its processes exited with. Here a run that a signal stopped exits with
128 + the number of the signal. A run whose processes printed an error exits with their code, 2.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from pc_ewa.train.signals import STOP_SIGNALS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run torchrun with `arguments` and return the exit code. None takes the arguments of the command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--signals-to-handle" in run.get_args_parser().format_help():  # since torch 2.11; older ones die of SIGUSR1
        # torchrun forwards the signals it handles to its processes. SIGUSR1 is not among them by default.
        arguments = ["--signals-to-handle", ",".join(number.name for number in STOP_SIGNALS), *arguments]
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # its reports repeat what the processes printed
    # A separate store for each attempt. The prefix of `distributed._join` does not suffice for several nodes, as they
    # may count their restarts differently.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    try:
        run.main(arguments)
    except SignalException as stop:
        return 128 + int(stop.sigval)
    except ChildFailedError as failed:
        # The first failure is the cause. The others were stopped by torchrun because of it.
        rank, failure = failed.get_first_failure()
        if failure.exitcode >= 0:
            return int(failure.exitcode)
        name = signal.Signals(-failure.exitcode).name
        print(
            f"error: process {rank} died of {name}; the same command goes on from the newest checkpoint",
            file=sys.stderr,
        )
        return 128 - int(failure.exitcode)
    return 0


if __name__ == "__main__":
    sys.exit(main())
