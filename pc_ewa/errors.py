"""Errors that commands print as one line, with exit code 2. Every other exception keeps its traceback."""

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from pc_ewa.text import printable


class Error(Exception):
    """A problem that the user can solve. The message has the value, the allowed values and the next step.

    Example:
        >>> try:
        ...     clouds = pc_ewa.load_dataset("modelnet41", "train")
        ... except pc_ewa.Error as error:
        ...     print(error)
        unknown dataset 'modelnet41'; did you mean 'modelnet40'?
        >>> issubclass(pc_ewa.ConfigError, pc_ewa.Error)
        True
    """


class ConfigError(Error):
    """A config that cannot be used: an unknown key, a wrong type or an impossible value."""


class DataError(Error):
    """A dataset that is missing, damaged or not what it claims to be."""


class CheckpointError(Error):
    """A checkpoint that is missing, damaged or made for another model."""


class OutputError(Error):
    """A model whose output is not finite, so that it has no score."""


class WriteError(Error):
    """A file that cannot be written, because of a full disk or missing permissions."""


class TrainingError(Error):
    """Training that cannot continue, for example after a loss that is not finite."""


class Stopped(Exception):  # noqa: N818  # not an error: the work stopped as requested
    """An orderly stop by a signal. The saved state allows the work to be resumed.

    Args:
        number: number of the signal. A command exits with 128 + number, as a shell reports a process that it killed.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


def exit_on_error(main: Callable[..., None]) -> Callable[..., int]:
    """Decorate the main function of a command: an `Error` becomes one line on stderr and exit code 2.

    Work that was stopped by a signal exits with 128 + its number, so that `pretrain && finetune` stops too. Ctrl-C
    prints one line and exits with 130.
    """

    @functools.wraps(main)
    def guarded(*args: Any, **kwargs: Any) -> int:
        try:
            main(*args, **kwargs)
        except Error as error:
            print(f"error: {printable(' '.join(str(error).split()), None)}", file=sys.stderr)
            return 2
        except Stopped as stop:
            return 128 + stop.number
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 128 + signal.SIGINT
        # The reader of the pipe has ended, as in `pc-ewa ... | head`.
        except BrokenPipeError:
            # Python flushes stdout at exit, which would raise again; see "Note on SIGPIPE" in its documentation.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            # 128 + SIGPIPE, as a shell reports a process that a closed pipe killed.
            return 141
        return 0

    return guarded
