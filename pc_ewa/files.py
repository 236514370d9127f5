"""Files that are whole or not there, and the lock of a folder."""

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pc_ewa.errors import ConfigError, WriteError


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write beside the file, flush to disk, then rename: a crash leaves the old file or the new one, whole.

    Args:
        path: the file; its folder must exist.
        write: gets the open file.

    Raises:
        WriteError: the file cannot be written.
    """
    if path.exists() and not path.is_file() and not path.is_dir():  # a rename would put a file in its place
        raise WriteError(f"cannot write {path}: it is a device or a pipe; choose a file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _new_file(temporary) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError | RuntimeError):
            raise _cannot_write(path, error) from None
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all. Errors are those of `write_whole`."""
    content = text.encode()  # before anything is opened: text may hold what UTF-8 cannot
    write_whole(path, lambda file: file.write(content))


def append_text(path: Path, text: str) -> None:
    """Add text to the end of a file: all of it, or nothing where there is no space for all.

    Raises:
        WriteError: the file cannot be written, or is a link that somebody planted.
    """
    try:
        with open(path, "ab", opener=_open_no_link) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                file.write(text.encode())
                file.flush()
            except OSError:
                with suppress(OSError):
                    file.truncate(end)
                raise
    except OSError as error:
        raise _cannot_write(path, error) from None


def read_json(path: Path) -> Any:
    """Read a JSON file that others may have written.

    Raises:
        ValueError: it is absent, not text, not JSON, or nested too deep.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError) as error:
        raise ValueError(str(error)) from None


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk: without it a power cut may undo a rename."""
    with suppress(OSError):  # some file systems cannot
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def lock_folder(folder: Path, owner: str = "another process") -> Iterator[int]:
    """Hold the lock of a folder, free once this process and those that inherit it have ended, however they end.

    Yields:
        The descriptor of the lock, for those that shall inherit it.

    Raises:
        ConfigError: the folder is in use by `owner`.
        WriteError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _locked(folder / ".lock")
    except BlockingIOError:
        raise ConfigError(f"{folder} is in use by {owner}; wait for it or choose another output") from None
    except OSError as error:
        raise WriteError(f"cannot write {folder}: {error.strerror}; choose another output") from None
    try:
        yield lock
    finally:
        os.close(lock)


def _cannot_write(path: Path, error: OSError | RuntimeError) -> WriteError:
    """Say why, and what helps: space only where the disk is full."""
    # torch.save turns a full disk into a RuntimeError about positions.
    reason = error.strerror if isinstance(error, OSError) else "the disk may be full"
    full = not isinstance(error, OSError) or error.errno in (errno.ENOSPC, errno.EDQUOT)
    return WriteError(f"cannot write {path}: {reason}; {'free some space or ' if full else ''}choose another output")


def _locked(path: Path) -> int:
    """Open and lock a file that is still there under its name once it is locked."""
    while True:
        # A link that somebody planted under its name is not followed.
        lock = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            _take(lock)
            if path.exists() and path.stat().st_ino == os.fstat(lock).st_ino:
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _take(lock: int) -> None:
    """Lock an open file, or raise BlockingIOError if another process holds it."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows; child processes do not inherit its locks
        import msvcrt

        try:
            msvcrt.locking(lock, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        except OSError as error:
            raise BlockingIOError(*error.args) from None
    else:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _new_file(path: Path) -> IO[bytes]:
    """Open a file that is not there yet; what a crash left under its name is removed, and a link is not followed."""
    try:
        return path.open("xb")
    except FileExistsError:
        path.unlink()
        return path.open("xb")
