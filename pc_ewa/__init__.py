"""pc-ewa: point-cloud transformers trained with Experts Weights Averaging.

Importing the package does not import torch. The first use of a public name imports its module.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pc_ewa import ops
    from pc_ewa.data import Clouds, load_dataset
    from pc_ewa.errors import CheckpointError, ConfigError, DataError, Error, TrainingError, WriteError
    from pc_ewa.ewa import ExpertAverager, Gate, balance_loss, dense_state_dict, merge_experts, upcycle
    from pc_ewa.inference import from_pretrained, load_model
    from pc_ewa.models import create_model, load_pretrained
    from pc_ewa.viz import show

    __version__: str

__all__ = [
    "create_model",
    "load_pretrained",
    "load_model",
    "from_pretrained",
    "upcycle",
    "ExpertAverager",
    "merge_experts",
    "dense_state_dict",
    "Gate",
    "balance_loss",
    "load_dataset",
    "Clouds",
    "show",
    "ops",
    "Error",
    "ConfigError",
    "DataError",
    "CheckpointError",
    "TrainingError",
    "WriteError",
]

# The module of each public name. The imports above are for type checkers only.
_HOMES = {
    "models": ("create_model", "load_pretrained"),
    "ewa": ("upcycle", "ExpertAverager", "merge_experts", "dense_state_dict", "Gate", "balance_loss"),
    "data": ("load_dataset", "Clouds"),
    "inference": ("load_model", "from_pretrained"),
    "viz": ("show",),
    "errors": ("Error", "ConfigError", "DataError", "CheckpointError", "TrainingError", "WriteError"),
}


def __getattr__(name: str) -> Any:
    if name == "ops":
        return import_module("pc_ewa.ops")
    if name == "__version__":
        return import_module("pc_ewa.package").version()
    for home, names in _HOMES.items():
        if name in names:
            # Stored in the module, so that `__getattr__` (PEP 562) runs only once per name.
            value = globals()[name] = getattr(_import(home, name), name)
            return value
    raise AttributeError(f"module 'pc_ewa' has no attribute {name!r}")


def _import(home: str, name: str) -> ModuleType:
    """Import a module of pc_ewa. If an optional package is missing, the error names its extra."""
    try:
        return import_module(f"pc_ewa.{home}")
    except ModuleNotFoundError as error:
        from pc_ewa.package import missing_package

        raise missing_package(error, f"pc_ewa.{name}") or error from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
