"""Atomic writing of files, and the lock of a folder."""

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pc_ewa.errors import ConfigError, WriteError


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file atomically: a crash leaves either the old file or the complete new one.

    Args:
        path: the file; its folder must exist.
        write: function that writes the content to the open temporary file.

    Raises:
        WriteError: the file cannot be written.
    """
    # Renaming onto a device such as /dev/null would replace it by a file.
    if path.exists() and not path.is_file() and not path.is_dir():
        raise WriteError(f"cannot write {path}: it is a device or a pipe; choose a file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _new_file(temporary) as file:
            write(file)
            file.flush()
            # Before the rename: otherwise a power cut may leave the new name with an empty file.
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
    """Write a text file atomically. Errors are those of `write_whole`."""
    # Encode before the file is opened, because surrogates raise UnicodeEncodeError.
    content = text.encode()
    write_whole(path, lambda file: file.write(content))


def append_text(path: Path, text: str) -> None:
    """Append whole lines to a file. If the disk is full, nothing of them is appended.

    A line that lacks its end, as after an editor or a crash, is ended first, so that it spoils no other.

    Raises:
        WriteError: the file cannot be written, or is a symbolic link.
    """
    try:
        with open(path, "a+b", opener=_open_no_link) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            torn = file.read(1) not in (b"", b"\n")
            try:
                file.write(b"\n" * torn + text.encode())
                file.flush()
            except OSError:
                # Remove a partial line, which would make a JSON Lines file unreadable.
                with suppress(OSError):
                    file.truncate(end)
                raise
    except OSError as error:
        raise _cannot_write(path, error) from None


def read_json(path: Path) -> Any:
    """Read a JSON file from an untrusted source.

    Raises:
        ValueError: the file is missing, not text, not JSON, or nested too deep.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError) as error:
        raise ValueError(str(error)) from None


def sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to disk. Without it, a power cut may undo a rename."""
    # Some file systems do not support it.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def lock_folder(folder: Path, owner: str = "another process") -> Iterator[int]:
    """Hold the lock of a folder. The kernel releases it when this process and all that inherit it have ended.

    Yields:
        The descriptor of the lock, to be inherited by subprocesses.

    Raises:
        ConfigError: the folder is in use by `owner`.
        WriteError: the folder cannot be created.
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
    """Return an error with the reason and a remedy, which is to free space only if the disk is full."""
    # On a full disk, torch.save raises a RuntimeError about file positions instead of an OSError.
    reason = error.strerror if isinstance(error, OSError) else "the disk may be full"
    full = not isinstance(error, OSError) or error.errno in (errno.ENOSPC, errno.EDQUOT)
    return WriteError(f"cannot write {path}: {reason}; {'free some space or ' if full else ''}choose another output")


def _locked(path: Path) -> int:
    """Open and lock a file, and return its descriptor."""
    while True:
        # O_NOFOLLOW refuses a symbolic link, by which another user could redirect the lock. Windows does not have it.
        lock = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            _take(lock)
            # Between open and lock, the file may have been deleted and created again. Then another process can lock the
            # new file, and this lock excludes nobody: try again.
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
    # Windows has no fcntl. Its subprocesses do not inherit locks.
    except ModuleNotFoundError:
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
    """Create a file exclusively. A leftover of a crash is removed first, and a symbolic link is not followed."""
    try:
        return path.open("xb")
    except FileExistsError:
        path.unlink()
        return path.open("xb")
