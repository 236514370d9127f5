"""What Windows lacks is asked for where it is used alone: the package imports there, locks folders and hears signals.

No Windows is at hand: its modules are stood in for, and what POSIX alone has is hidden.
"""

import ast
import os
import runpy
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pc_ewa.errors import ConfigError
from pc_ewa.files import lock_folder
from pc_ewa.ops import compiled
from pc_ewa.train.meter import peak_memory

PACKAGE = Path(__file__).parent.parent / "pc_ewa"
POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
POSIX_NAMES = {"geteuid", "getuid", "fork", "O_NOFOLLOW", "O_DIRECTORY", "SIGHUP", "SIGKILL", "SIGALRM", "SIGUSR1"}


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from at_import(child)


def test_nothing_that_windows_lacks_is_needed_at_import() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in at_import(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names} & POSIX_MODULES
            elif isinstance(node, ast.ImportFrom):
                names = {node.module} & POSIX_MODULES
            else:
                names = {getattr(node, "attr", None)} & POSIX_NAMES
            found |= {f"{path.relative_to(PACKAGE)}: {name}" for name in names}
    # Reliability is measured on Linux alone, and the command says so before it imports this.
    assert found == {"benchmark/damage.py: resource"}


def test_a_folder_is_locked_by_what_windows_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: set[int] = set()

    def locking(descriptor: int, mode: int, count: int) -> None:
        assert (mode, count) == (2, 1)
        inode = os.fstat(descriptor).st_ino
        if inode in held:
            raise PermissionError(13, "Permission denied")
        held.add(inode)

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))
    monkeypatch.delattr(os, "O_NOFOLLOW")
    with lock_folder(tmp_path), pytest.raises(ConfigError, match="in use by x"), lock_folder(tmp_path, "x"):
        pass
    assert len(held) == 1


def test_signals_are_those_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "SIGHUP")
    monkeypatch.delattr(signal, "SIGUSR1")
    names = runpy.run_path(str(PACKAGE / "train" / "signals.py"))
    assert names["STOP_SIGNALS"] == (signal.SIGTERM, signal.SIGINT)
    executor = runpy.run_path(str(PACKAGE / "compare" / "execute.py"))
    before = signal.getsignal(signal.SIGTERM)
    with executor["_stop_signals"]({}) as received:
        signal.raise_signal(signal.SIGTERM)
    assert received == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_peak_of_memory_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory(torch.device("cpu")) == 0


def test_the_kernels_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(compiled.UnavailableError, match="Windows"):
        compiled.find_compiler()
