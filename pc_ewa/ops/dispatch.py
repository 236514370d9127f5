"""Selection of the backend of the ops by PC_EWA_OPS, "auto" or a name. The log has it once, with the reason."""

import functools
import importlib
import logging
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch

log = logging.getLogger(__name__)

# A backend is a module with some of the functions of `reference`, and `unavailable(device_type)`. That returns the
# reason why the backend cannot serve a type of device, or None if it can. A function may return NotImplemented for
# arguments that it does not support. The next backend is tried then.
BACKENDS = {
    "pointnet2": "pc_ewa.ops.pointnet2",
    "triton": "pc_ewa.ops.triton_backend",
    "cpu": "pc_ewa.ops.cpu",
    "reference": "pc_ewa.ops.reference",
}
AUTO = {"cpu": ("cpu",), "cuda": ("triton",)}


class Backend(NamedTuple):
    """The backend for a device: its name, and the reason why it was selected."""

    name: str
    reason: str


def backend(device: torch.device | str = "cpu") -> Backend:
    """Return the backend for a device, and the reason why it was selected.

    Raises:
        ValueError: PC_EWA_OPS names an unknown backend, or one that cannot run on this machine.
    """
    return _choose(_asked(), torch.device(device).type)[0]


def call(op: str, device: torch.device, *arguments: Any) -> Any:
    """Run an op by name on the first backend that supports its arguments. The reference supports all arguments."""
    # Kernels read tensors through plain pointers, without strides.
    arguments = tuple(a.contiguous() if isinstance(a, torch.Tensor) else a for a in arguments)
    for module in _choose(_asked(), device.type)[1]:
        function: Callable[..., Any] | None = getattr(module, op, None)
        if function is not None:
            result = function(*arguments)
            if result is not NotImplemented:
                return result
    raise NotImplementedError(op)


def _asked() -> str:
    return os.environ.get("PC_EWA_OPS") or "auto"


@functools.cache
def _choose(asked: str, device: str) -> tuple[Backend, tuple[ModuleType, ...]]:
    """Return the backend for a type of device, and the modules to try in order."""
    if asked != "auto" and asked not in BACKENDS:
        raise ValueError(f"PC_EWA_OPS={asked}: no such backend; choose from auto, {', '.join(BACKENDS)}")
    # A named backend comes first, then those of `auto`, for ops and arguments that it does not support.
    names: list[str] = [] if asked in ("auto", "reference") else [asked]
    if asked != "reference":
        names += [name for name in AUTO.get(device, ()) if name != asked]
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    modules, reasons = [], []
    for name in names:
        module = importlib.import_module(BACKENDS[name])
        problem = module.unavailable(device)
        if problem is None:
            modules.append((name, module))
        # An error only if the named backend serves no device of this machine. Otherwise PC_EWA_OPS=triton would break
        # every op on CPU tensors in a program that uses both.
        elif name == asked and all(module.unavailable(other) for other in devices):
            raise ValueError(f"PC_EWA_OPS={asked} cannot run here: {problem}; choose auto or reference")
        else:
            reasons.append(f"{name}: {problem}")
    name = modules[0][0] if modules else "reference"
    if not reasons:
        reasons = ["chosen by PC_EWA_OPS" if asked == name else "the fastest here"]
    chosen = Backend(name, "; ".join(reasons))
    # Falling back to plain torch costs the user time, so it is a warning.
    slow = name == "reference" and asked == "auto" and bool(names)
    log.log(logging.WARNING if slow else logging.INFO, "point-cloud ops on %s: %s (%s)", device, name, chosen.reason)
    modules.append(("reference", importlib.import_module(BACKENDS["reference"])))
    return chosen, tuple(module for _, module in modules)
