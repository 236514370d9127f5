"""The base of all commands: a parser whose mistakes are one line, and the handling of errors."""

from __future__ import annotations  # as in package.py

import argparse
import errno
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pc_ewa.errors import ConfigError, exit_on_error
from pc_ewa.package import MissingPackageError, check_python, missing_package
from pc_ewa.text import doubled


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports a mistake in one line, and whose arguments all have a help text.

    Example:
        >>> parser = Parser(prog="pc-ewa merge", description="Merge the experts of a checkpoint.")
        >>> _ = parser.add_argument("checkpoint", help="a checkpoint with mixtures of experts")
        >>> parser.parse_args(["last.pt"]).checkpoint
        'last.pt'
    """

    def __init__(self, *, prog: str, description: str, epilog: str = "") -> None:
        style = argparse.RawDescriptionHelpFormatter  # examples keep their lines
        super().__init__(prog=prog, description=description, epilog=epilog, formatter_class=style)

    def add_argument(self, *names: str, help: str, **options: Any) -> argparse.Action:  # type: ignore[override]
        """Add an argument; `help` is required."""
        return super().add_argument(*names, help=help, **options)

    def error(self, message: str) -> Any:
        """Raise ConfigError in place of printing the usage and exiting."""
        raise ConfigError(f"{message}; see {self.prog} --help")


def add_config_overrides(parser: Parser, help: str = "change keys of the config, as in train.lr=1e-3") -> None:
    """Let a command take `key=value` arguments, which may stand anywhere among the others."""
    # Without a default argparse says that key=value is missing when another argument is.
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=help)


def add_what_files_lack(parser: Parser) -> None:
    """Let a command take what checkpoints of others do not hold; `class_names` reads the second."""
    parser.add_argument(
        "--config", metavar="CONFIG", help="the experiment, for checkpoints that do not hold one (official files)"
    )
    parser.add_argument("--class-names", metavar="FILE", help="a text file, one class a line, for those that name none")


def class_names(options: argparse.Namespace) -> list[str] | None:
    """Read the file of --class-names; None without it.

    Raises:
        ConfigError: a file that cannot be read, that names no class, or one twice.
    """
    if options.class_names is None:
        return None
    try:
        with open(options.class_names, encoding="utf-8-sig") as file:
            names = [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--class-names {options.class_names}: {error}; give a text file, one class a line") from None
    if not names:
        raise ConfigError(f"--class-names {options.class_names} is empty; write one class a line")
    if (twice := doubled(names)) is not None:
        raise ConfigError(f"--class-names {options.class_names} has {twice!r} twice; write each class once")
    return names


def refuse_overwriting(written: Mapping[str, str | Path | None], read: Iterable[str | Path | None]) -> None:
    """Refuse to write over a file that is read, or two outputs into one file.

    Args:
        written: where each option writes, None for nowhere.
        read: every file that is read.

    Raises:
        ConfigError: a place that is among both, or named twice.
    """
    options: dict[str, str] = {}
    for option, place in written.items():
        if place is not None and options.setdefault(os.path.realpath(place), option) != option:
            first = options[os.path.realpath(place)]
            raise ConfigError(f"{first} and {option} are both {place}; choose another for one of them")
    for name in read:
        if name is not None and (option := options.get(os.path.realpath(name), "")):
            raise ConfigError(f"{option}: {name} is one of the files to read; choose another place for what is written")


def command(name: str, extra: str | None = None) -> Callable[[Callable[..., None]], Callable[..., int]]:
    """Decorate the main function of a command; the result returns the exit code.

    A problem that the user can solve is one line on stderr and exit code 2. So is a package that is not installed.

    Args:
        name: of the command.
        extra: the extra of pc-ewa that has all that the command needs, None for those that need the core alone.
    """

    def decorate(main: Callable[..., None]) -> Callable[..., int]:
        @exit_on_error
        @functools.wraps(main)
        def explained(arguments: Sequence[str] | None = None) -> None:
            check_python()
            try:
                main(arguments)
            except MissingPackageError:  # it knows better which extra
                raise
            except ModuleNotFoundError as error:
                raise missing_package(error, f"pc-ewa {name}", extra) or error from None
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                raise ConfigError(f"{str(error.filename)[:60]}...: {error.strerror}; choose a shorter name") from None

        return explained

    return decorate
