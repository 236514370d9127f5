"""The base of all commands: a parser that reports a mistake in one line, and the handling of errors."""

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
    """An ArgumentParser that reports a mistake in one line, and that requires a help text for every argument.

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
        """Add an argument. `help` is required."""
        return super().add_argument(*names, help=help, **options)

    def error(self, message: str) -> Any:
        """Raise ConfigError instead of printing the usage and exiting."""
        raise ConfigError(f"{message}; see {self.prog} --help")


def add_config_overrides(parser: Parser, help: str = "change keys of the config, as in train.lr=1e-3") -> None:
    """Add `key=value` arguments, which may stand anywhere among the others."""
    # Without a default, argparse would also report key=value as missing when another argument is.
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=help)


def add_what_files_lack(parser: Parser) -> None:
    """Add options for what official checkpoints lack: --config, and --class-names, which `class_names` reads."""
    parser.add_argument(
        "--config", metavar="CONFIG", help="the experiment, for checkpoints that do not hold one (official files)"
    )
    parser.add_argument("--class-names", metavar="FILE", help="a text file, one class a line, for those that name none")


def class_names(options: argparse.Namespace) -> list[str] | None:
    """Read the file of --class-names. Returns None without that option.

    Raises:
        ConfigError: a file that cannot be read, that has no class, or that has a class twice.
    """
    if options.class_names is None:
        return None
    try:
        # utf-8-sig also reads plain UTF-8. It drops the byte-order mark that editors on Windows write.
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
    """Check that no output would replace an input or another output.

    Args:
        written: the path that each option writes. None for an option that was not given.
        read: every file that is read.

    Raises:
        ConfigError: a path that is both read and written, or written twice.
    """
    # Compare real paths: a link, or another spelling of the same path, would be replaced all the same.
    options: dict[str, str] = {}
    for option, place in written.items():
        if place is not None and options.setdefault(os.path.realpath(place), option) != option:
            first = options[os.path.realpath(place)]
            raise ConfigError(f"{first} and {option} are both {place}; choose another for one of them")
    for name in read:
        if name is not None and (option := options.get(os.path.realpath(name), "")):
            raise ConfigError(f"{option}: {name} is one of the files to read; choose another place for what is written")


def command(name: str, extra: str | None = None) -> Callable[[Callable[..., None]], Callable[..., int]]:
    """Decorate the main function of a command, so that it returns an exit code.

    An error that the user can solve prints one line to stderr, with exit code 2. So does a package that is missing.

    Args:
        name: of the command.
        extra: the extra of pc-ewa with all packages of the command. None for a command that needs the core only.
    """

    def decorate(main: Callable[..., None]) -> Callable[..., int]:
        @exit_on_error
        @functools.wraps(main)
        def explained(arguments: Sequence[str] | None = None) -> None:
            check_python()
            try:
                main(arguments)
            # Subclass of ModuleNotFoundError, raised where the right extra was known: keep its message.
            except MissingPackageError:
                raise
            except ModuleNotFoundError as error:
                raise missing_package(error, f"pc-ewa {name}", extra) or error from None
            # Only a path that is too long is the user's to solve here. Other OSErrors keep their traceback.
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                raise ConfigError(f"{str(error.filename)[:60]}...: {error.strerror}; choose a shorter name") from None

        return explained

    return decorate
