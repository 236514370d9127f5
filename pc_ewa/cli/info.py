"""`pc-ewa info`: the facts that a bug report needs."""

from __future__ import annotations  # as in package.py

import importlib
import logging
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pc_ewa import package
from pc_ewa.bundled import bundled, bundled_configs, bundled_models, checkout
from pc_ewa.cli.command import Parser, command

DESCRIPTION = """\
Print versions, devices, the backend of the point-cloud ops with its reason, and the datasets that are ready. Paste all
of it into a bug report."""

EPILOG = """\
examples:
  pc-ewa info
  pc-ewa info --root /data        # datasets in another folder"""


def create_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(prog="pc-ewa info", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--root", default="datasets", help="the folder with one folder per dataset (default: datasets)")
    return parser


@command("info")
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, then print section by section, as a later one may take seconds."""
    options = create_parser().parse_args(arguments)
    # The ops log their choice of a backend. It is printed below, and should not appear twice.
    logging.getLogger("pc_ewa.ops").setLevel(logging.ERROR)
    for section in (versions, machine, ops, files):
        for title, text in section():
            print(f"{title:<18}{text}", flush=True)
        print()
    for title, text in datasets(Path(options.root)):
        print(f"{title:<18}{text}", flush=True)


Rows = Iterator[tuple[str, str]]


def versions() -> Rows:
    """Yield versions of pc-ewa, Python and all packages that it can use."""
    place = checkout() or Path(package.__file__).parent
    yield "pc-ewa", f"{package.version()}, {'a checkout' if checkout() else 'installed'} at {place}"
    yield "python", f"{platform.python_version()} at {sys.executable}"
    for module in package.CORE:
        yield module, package.version_of(module) or "not installed: pip install pc-ewa"
    for module, extra in package.OPTIONAL.items():
        yield module, package.version_of(module) or f"not installed: pip install 'pc-ewa[{extra}]'"


def machine() -> Rows:
    """Yield platform, threads and devices."""
    import torch

    yield "platform", platform.platform()
    yield "CPU", f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    if not torch.cuda.is_available():
        yield "GPU", f"none that torch {torch.__version__} can use"
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.cuda.get_device_properties(index)
        able = f"compute {device.major}.{device.minor}, {device.total_memory / 2**30:.0f} GiB"
        yield f"cuda:{index}", f"{device.name}, {able}, CUDA {torch.version.cuda}"


def ops() -> Rows:
    """Yield the backend of the ops on each type of device, and its compiler."""
    import torch

    from pc_ewa.ops import backend, compiled

    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        try:
            chosen = backend(device)
            yield f"ops on {device}", f"{chosen.name} ({chosen.reason})"
        except ValueError as error:  # PC_EWA_OPS names a backend that cannot run
            yield f"ops on {device}", str(error)
    yield "PC_EWA_OPS", os.environ.get("PC_EWA_OPS") or "not set"
    try:
        yield "compiler", shlex.join(compiled.find_compiler())
    except compiled.UnavailableError as error:
        yield "compiler", str(error)
    prebuilt = len(list(compiled.PREBUILT.glob("*.so")))
    yield "kernels", f"{prebuilt} in the package, cache at {compiled.cache_folder()}"


def files() -> Rows:
    """Yield the bundled files and their folders."""
    yield "bundled", f"{len(bundled_configs())} configs in {bundled('configs')}, data in {bundled('datasets')}"
    yield "models", f"{', '.join(bundled_models())} in {bundled('models')}"


def datasets(root: Path) -> Rows:
    """Yield the state of each dataset on this machine."""
    try:
        prepare = importlib.import_module("pc_ewa.data.prepare")
    except ModuleNotFoundError as error:
        explained = package.missing_package(error, "pc_ewa.data")
        if explained is None:
            raise
        yield "datasets", str(explained)
        return
    for name, dataset in prepare.listed().items():
        yield name, prepare.state(dataset, root / name)
