"""The package itself: its version, its optional packages, and how to get one that is missing."""

from __future__ import annotations  # an old Python shall get as far as `check_python`

import importlib.metadata
import re
import shlex
import shutil
import sys
from pathlib import Path

from pc_ewa.bundled import checkout
from pc_ewa.errors import Error

# What can be imported, and the extra that brings it, as pyproject.toml has them.
OPTIONAL = {
    "h5py": "data",
    "requests": "data",
    "tqdm": "data",
    "yaml": "data",
    "sklearn": "train",
    "wandb": "train",
    "matplotlib": "compare",
    "scipy": "compare",
    "open3d": "viz",
    "plotly": "viz",
    "accelerate": "trainers",
    "lightning": "trainers",
    "transformers": "trainers",
    "huggingface_hub": "hub",
    "laspy": "formats",
    "lazrs": "formats",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "openvino": "openvino",
    "tensorboard": "tensorboard",
}
CORE = ("torch", "numpy", "einops", "pydantic", "safetensors")
_DISTRIBUTIONS = {"sklearn": "scikit-learn", "yaml": "PyYAML"}


class MissingPackageError(Error, ModuleNotFoundError):
    """A package that is not installed; the message has the command that installs it."""


def check_python() -> None:
    """Refuse a Python that is too old; a clone's scripts may be started by the one of the system.

    Raises:
        Error: it is below 3.10; the message names a better one.
    """
    if sys.version_info < (3, 10):  # noqa: UP036
        found = ".".join(map(str, sys.version_info[:3]))
        remedy = _environment_of_checkout("torch") or "start another one"
        raise Error(f"pc-ewa needs Python 3.10 or newer, and this is {found}: {remedy}")


def version() -> str:
    """Return the version of pc-ewa.

    pyproject.toml owns it. The metadata of an installed package repeats it, but beside a checkout it may be another
    installation's.
    """
    root = checkout()
    if root is None:
        return importlib.metadata.version("pc-ewa")
    found = re.search(r'^version = "(.+)"$', (root / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else "unknown"


def version_of(module: str) -> str | None:
    """Return the version of an installed package by the name that it is imported by, or None."""
    try:
        return importlib.metadata.version(_DISTRIBUTIONS.get(module, module))
    except importlib.metadata.PackageNotFoundError:
        return None


def command(name: str = "pc-ewa", module: str = "pc_ewa") -> str:
    """Return a command as this user types it: its path if the shell finds none, or that of another environment.

    Args:
        name: of the command.
        module: what python runs by -m in its place.
    """
    script = Path(sys.executable).with_name(name)
    if not script.is_file():
        return f"{shlex.quote(_from_here(Path(sys.executable)))} -m {module}"
    found = shutil.which(name)
    return name if found and Path(found).samefile(script) else shlex.quote(_from_here(script))


def _from_here(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def missing_package(error: ModuleNotFoundError, user: str, extra: str | None = None) -> MissingPackageError | None:
    """Explain an import that failed because of a package that we can do without, or that comes with pc-ewa.

    Args:
        error: what the import raised.
        user: who needs the package, such as "pc-ewa train".
        extra: the extra that has all that `user` needs (default: the one of the package).

    Returns:
        The error to raise, or None if a module is missing that is not an optional package: that is a defect.
    """
    module = (error.name or "").partition(".")[0]
    if module not in OPTIONAL and module not in CORE:
        return None
    wanted = "pc-ewa" if module in CORE else f"pc-ewa[{extra or OPTIONAL[module]}]"
    remedy = _environment_of_checkout(module) or f"pip install '{wanted}'"
    return MissingPackageError(f"{user} needs {module}, which is not installed: {remedy}", name=error.name)


def _environment_of_checkout(module: str) -> str | None:
    """Name the environment that the scripts of a checkout have made, or the script that makes it.

    None if this is a wheel, or another environment that is good enough for `import pc_ewa.models`.
    """
    root = checkout()
    if root is None or Path(sys.prefix) == root / ".venv":
        return None
    place = "" if Path.cwd() == root else f"{root}/"
    if (root / ".venv/bin/activate").is_file():
        return f"source {place}.venv/bin/activate"
    bare = module in CORE or version_of("torch") is None
    return f"bash {place}tools/run_train.sh makes an environment that has it" if bare else None
