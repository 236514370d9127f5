"""The kernels of csrc/ as a shared library: the one in the wheel, or one that is compiled once on this machine.

Only the standard library is imported here, because setup.py compiles the libraries of the wheel with this file.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

log = logging.getLogger(__name__)

Scalar = Literal["float", "double"]

SOURCES = Path(__file__).parent / "csrc"
PREBUILT = Path(__file__).parent / "prebuilt"
# No contraction to fused multiply-add: it rounds once instead of twice, unlike the reference, so that distances would
# differ in the last bit and other points would be selected. No -ffast-math for the same reason.
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=off")
# The levels of x86 that the wheel is compiled for, the fastest first, and the CPU flags that each needs.
LEVELS = {
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "bmi1", "bmi2", "fma"},
    "x86-64-v3": {"avx2", "bmi1", "bmi2", "fma"},
    "x86-64": {"sse2"},
}


class UnavailableError(Exception):
    """The library is missing and cannot be compiled. The message has the reason."""


@functools.cache
def library(scalar: Scalar) -> ctypes.CDLL:
    """Load the kernels for float or double coordinates. Compile them if there is no library.

    Raises:
        UnavailableError: there is no compiler, or it fails.
    """
    for level, needed in LEVELS.items():
        path = prebuilt_path(scalar, level)
        if path.is_file() and needed <= cpu_flags():
            with suppress(OSError):  # a library for another C library, such as musl's, does not load: compile one
                return ctypes.CDLL(str(path))
    compiler = find_compiler()
    name = f"kernels-{_fingerprint(scalar, compiler)}"
    with suppress(OSError):
        cache = _private_cache()
        for path in sorted(cache.glob(f"{name}-*.so")):
            # The name has the digest of the content. A library with another digest is damaged, and could crash the
            # process when it is loaded.
            if is_private(path) and path.name == f"{name}-{_digest(path)}.so":
                return ctypes.CDLL(str(path))
        # Processes that start together each compile a separate file, and rename it when it is complete. os.replace is
        # atomic, so that no process loads a part of a file.
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            made = _compile_here(scalar, compiler, Path(folder) / "kernels.so")
            made.chmod(0o700)
            path = cache / f"{name}-{_digest(made)}.so"
            os.replace(made, path)
        return ctypes.CDLL(str(path))
    # The cache cannot be written, not be executed from or not be trusted. Compile for this process only; the library
    # stays loaded when its file is removed.
    with tempfile.TemporaryDirectory() as folder:
        try:
            return ctypes.CDLL(str(_compile_here(scalar, compiler, Path(folder) / "kernels.so")))
        except OSError as error:
            raise UnavailableError(f"the compiled kernels cannot be loaded: {error}") from None


def is_private(path: Path) -> bool:
    """Return True if a file or folder belongs to this user or root, is not a link, and only its owner can write it."""
    # Loading a library runs its code. One that another user can write could do anything as this user.
    about = path.lstat()
    ours = about.st_uid in (0, os.geteuid())
    return ours and not stat.S_ISLNK(about.st_mode) and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def find_compiler() -> tuple[str, ...]:
    """Return the C++ compiler as words of a command: $CXX, or the first of g++, clang++ and c++.

    Raises:
        UnavailableError: there is none, or this is Windows.
    """
    if sys.platform == "win32":
        raise UnavailableError("the kernels are not compiled on Windows")
    wanted = os.environ.get("CXX", "").strip()
    try:
        candidates = [shlex.split(wanted)] if wanted else [["g++"], ["clang++"], ["c++"]]
    except ValueError as error:
        raise UnavailableError(f"CXX={wanted} is not a command: {error}") from None
    for words in candidates:
        program = shutil.which(words[0])
        if program:
            return (program, *words[1:])
    raise UnavailableError(f"no C++ compiler ({wanted or 'g++ or clang++'} not found); install one for speed")


def compile_library(scalar: Scalar, compiler: tuple[str, ...], target: Path, march: str | None) -> None:
    """Compile the kernels to a file.

    Raises:
        UnavailableError: the compiler fails; the message holds its first error.
    """
    machine = [] if march is None else [f"-march={march}"]
    command = [*compiler, *FLAGS, *machine, f"-DSCALAR={scalar}", str(SOURCES / "kernels.cpp"), "-o", str(target)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, errors="replace")
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{compiler[0]} took more than 5 minutes") from None
    if done.returncode:
        lines = done.stderr.splitlines() or [f"exit code {done.returncode}"]
        first = next((line for line in lines if "error" in line), lines[0])
        raise UnavailableError(f"{compiler[0]} failed: {first.strip()}")


def prebuilt_path(scalar: Scalar, level: str) -> Path:
    """Return the path of the wheel's library for a level of x86. Its name has the hash of its source."""
    return PREBUILT / f"{_source_hash()[:16]}-{scalar}-{level}.so"


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Return the features of this CPU, by their names in Linux. They are empty if there is no /proc."""
    flags: set[str] = set()
    for key, value in _cpu_lines():
        if key in ("flags", "Features"):
            flags |= set(value.split())
    return frozenset(flags)


def _compile_here(scalar: Scalar, compiler: tuple[str, ...], target: Path) -> Path:
    """Compile for this CPU, or for its architecture if the compiler does not support -march=native."""
    began = time.perf_counter()
    try:
        compile_library(scalar, compiler, target, "native")
    except UnavailableError:
        compile_library(scalar, compiler, target, None)
    log.info("compiled the kernels for %s in %.1f s", scalar, time.perf_counter() - began)
    return target


def cache_folder() -> Path:
    """Return the folder of libraries compiled on this machine. Without a home folder the path is not absolute."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "pc_ewa"


def _private_cache() -> Path:
    """Create and return that folder.

    Raises:
        OSError: it cannot be created, or other users could put a library there.
    """
    cache = cache_folder()
    if not cache.is_absolute():  # the owner of the working directory could put a library there
        raise OSError(f"{cache} is not an absolute path")
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not is_private(cache):
        log.warning("%s can be written by other users: the kernels are compiled for this process only", cache)
        raise PermissionError(f"{cache} can be written by other users")
    return cache


@functools.cache
def _source_hash() -> str:
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in (".h", ".cpp"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _fingerprint(scalar: Scalar, compiler: tuple[str, ...]) -> str:
    """Return a hash of everything that the library depends on."""
    # Machines with different CPUs and compilers may share a home folder, and -march=native depends on both.
    try:
        version = subprocess.run(
            [*compiler, "--version"], capture_output=True, text=True, timeout=60, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{compiler[0]} does not run: {error}") from None
    models = {value for key, value in _cpu_lines() if key in ("model name", "CPU part")}
    cpu = [platform.machine(), *sorted(models), *sorted(cpu_flags())]
    return hashlib.sha256("\n".join([_source_hash(), scalar, *compiler, version, *cpu]).encode()).hexdigest()[:24]


def _cpu_lines() -> Iterator[tuple[str, str]]:
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            key, _, value = line.partition(":")
            yield key.strip(), value.strip()
