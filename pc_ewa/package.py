"""The version of the package, its optional dependencies, and the remedy for a missing one."""

# Without it, Python 3.9 and older would fail on annotations such as `str | None` before `check_python` can run.
from __future__ import annotations

import importlib.metadata
import re
import shlex
import shutil
import sys
from pathlib import Path

from pc_ewa.bundled import checkout
from pc_ewa.errors import Error

# The importable names of optional packages, each with its extra in pyproject.toml.
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
    """A package that is not installed. The message has the command that installs it."""


def check_python() -> None:
    """Refuse a Python that is too old. The scripts of a clone may be started by the Python of the system.

    Raises:
        Error: Python is older than 3.10; the message has a remedy.
    """
    if sys.version_info < (3, 10):  # noqa: UP036
        found = ".".join(map(str, sys.version_info[:3]))
        remedy = _environment_of_checkout("torch") or "start another one"
        raise Error(f"pc-ewa needs Python 3.10 or newer, and this is {found}: {remedy}")


def version() -> str:
    """Return the version of pc-ewa.

    It is defined in pyproject.toml. The installed metadata repeats it, but in a checkout the metadata may belong to
    another installation.
    """
    root = checkout()
    if root is None:
        return importlib.metadata.version("pc-ewa")
    found = re.search(r'^version = "(.+)"$', (root / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else "unknown"


def version_of(module: str) -> str | None:
    """Return the version of a package, given its import name. None means that it is not installed."""
    try:
        return importlib.metadata.version(_DISTRIBUTIONS.get(module, module))
    except importlib.metadata.PackageNotFoundError:
        return None


def command(name: str = "pc-ewa", module: str = "pc_ewa") -> str:
    """Return a command as the user can type it: its name, or its path if the shell would not find the right one.

    Args:
        name: name of the command.
        module: module for `python -m`, if the command is not installed.
    """
    script = Path(sys.executable).with_name(name)
    if not script.is_file():
        return f"{shlex.quote(_from_here(Path(sys.executable)))} -m {module}"
    found = shutil.which(name)
    return name if found and Path(found).samefile(script) else shlex.quote(_from_here(script))


def _from_here(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def missing_package(error: ModuleNotFoundError, user: str, extra: str | None = None) -> MissingPackageError | None:
    """Return an error that explains a failed import of a dependency of pc-ewa.

    Args:
        error: exception of the import.
        user: the feature that needs the package, such as "pc-ewa train".
        extra: the extra with all packages that `user` needs. None takes the extra of the package.

    Returns:
        The error to raise. None means that the module is not a dependency, so that the failed import is a defect.
    """
    module = (error.name or "").partition(".")[0]
    if module not in OPTIONAL and module not in CORE:
        return None
    wanted = "pc-ewa" if module in CORE else f"pc-ewa[{extra or OPTIONAL[module]}]"
    remedy = _environment_of_checkout(module) or f"pip install '{wanted}'"
    return MissingPackageError(f"{user} needs {module}, which is not installed: {remedy}", name=error.name)


def _environment_of_checkout(module: str) -> str | None:
    """Return the command that activates or creates the environment of a checkout.

    None means that the package is a wheel, or that the current environment suffices for `import pc_ewa.models`.
    """
    root = checkout()
    if root is None or Path(sys.prefix) == root / ".venv":
        return None
    place = "" if Path.cwd() == root else f"{root}/"
    if (root / ".venv/bin/activate").is_file():
        return f"source {place}.venv/bin/activate"
    bare = module in CORE or version_of("torch") is None
    return f"bash {place}tools/run_train.sh makes an environment that has it" if bare else None
