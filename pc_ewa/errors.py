"""Errors that commands print as one line, with exit code 2; every other exception keeps its traceback."""

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from pc_ewa.text import printable


class Error(Exception):
    """A problem the user can solve: the message has the value, what is allowed and the next step."""


class ConfigError(Error):
    """An experiment that cannot run: unknown key, wrong type, impossible value."""


class DataError(Error):
    """A dataset that is missing, damaged or not what it claims to be."""


class CheckpointError(Error):
    """A checkpoint that is missing, damaged or made for another model."""


class OutputError(Error):
    """A model whose output is not finite: it has no score."""


class WriteError(Error):
    """A file that cannot be written: a full disk, a folder that is not ours."""


class TrainingError(Error):
    """Training that cannot go on, such as a loss that is not finite."""


class Stopped(Exception):  # noqa: N818  # not an error: the work was asked to stop, and did
    """A signal stopped the work in good order: what is saved goes on from there.

    Args:
        number: the signal. A command exits with 128 + number, as the shell says of a process that died of it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


def exit_on_error(main: Callable[..., None]) -> Callable[..., int]:
    """Decorate the main function of a tool: an `Error` becomes one line on stderr and exit code 2.

    Work that a signal stopped exits with 128 + its number, so that `pretrain && finetune` stops there. Ctrl-C anywhere
    is one line and 130.
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
        except BrokenPipeError:  # `tool | head` has read enough; nothing more may be written there, on leaving either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141  # as the shell says of a process that a closed pipe ended
        return 0

    return guarded
