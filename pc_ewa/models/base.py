"""The base of our models: what a trained one knows beside its weights, and the three things to do with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from pc_ewa.errors import ConfigError

_UP_AXES = ("x", "y", "z")
_MOST_POINTS = 1 << 24  # of a cloud: a file that asks for more is damaged, and no memory holds it


@dataclass(frozen=True)
class Preprocessing:
    """The way from a cloud of any size to the points that a model was trained on.

    Attributes:
        num_points: points that the model sees.
        stored_points: points of a cloud in the training data: one that has more is first cut to so many at random, one
            that has fewer repeats some. None if nobody knows: clouds are used whole.
        sampling: how `num_points` of them are chosen: "farthest", or "random".
        normalize: centre and scale each cloud into the unit sphere.
        up_axis: the axis that pointed up in the training data; None if nobody knows.

    Raises:
        ConfigError: a value that is not allowed.

    Example:
        >>> Preprocessing(num_points=1024, up_axis="z").normalize
        True
    """

    num_points: int
    stored_points: int | None = None
    sampling: Literal["farthest", "random"] = "farthest"
    normalize: bool = True
    up_axis: Literal["x", "y", "z"] | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        for name, least in (("num_points", 1), ("stored_points", self.num_points)):
            value = getattr(self, name)
            unknown = value is None and name == "stored_points"
            if not unknown and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise ConfigError(f"{name}={value!r}; give a whole number of at least {least}")
            if not unknown and value > _MOST_POINTS:
                raise ConfigError(f"{name}={value}; allowed are at most {_MOST_POINTS} points")
        if not isinstance(self.normalize, bool):
            raise ConfigError(f"normalize={self.normalize!r}; choose true or false")
        if self.sampling not in ("farthest", "random"):
            raise ConfigError(f"sampling={self.sampling!r}; choose from farthest, random")
        if self.up_axis not in (None, *_UP_AXES):
            raise ConfigError(f"up_axis={self.up_axis!r}; choose from {', '.join(_UP_AXES)}")


def least_points(model: nn.Module) -> int:
    """Return the number of points below which a model has not enough for its patches and levels."""
    sizes: list[int] = [model.num_groups, model.group_size, *getattr(model, "levels", ())]  # type: ignore[list-item]
    return max(sizes)


class PointModel(nn.Module):
    """A network on clouds. Its state_dict has the weights alone; what follows is for use after training.

    Attributes:
        class_names: the name of each class, or None for a model that nobody trained.
        preprocessing: how clouds were presented to it, or None likewise.
        parts_of: segmenters: the parts that each class can have, or None for all.
        precision: "fp32", or "bf16" to predict in autocast.
        built_as: its name in MODELS and all arguments, as `create_model` got them.
        training_record: the config, data, metrics and licence of the run that it comes from, as far as they are known.
        notes: what a user should know of the file that it was loaded from, a line each.

    Example:
        >>> model = pc_ewa.load_model("furniture", device="cpu")
        >>> model.predict(torch.rand(5000, 3)).label in model.class_names
        True
    """

    class_names: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    parts_of: tuple[tuple[int, ...], ...] | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    built_as: Mapping[str, Any] | None = None
    training_record: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def predict(self, inputs: Any, **options: Any) -> Any:
        """Classify or segment clouds, files or folders of any size; see `pc_ewa.inference.predict`."""
        from pc_ewa.inference import predict

        return predict(self, inputs, **options)

    def show(self, points: Any, **options: Any) -> Any:
        """Show the model at work on clouds (B, N, 3): what it reconstructs or attends to; see `pc_ewa.viz.show`."""
        from pc_ewa.viz import show

        return show(self, points, **options)

    def save_pretrained(self, folder: str | Path, **options: Any) -> Path:
        """Write config.json, model.safetensors and a model card to a folder; see `pc_ewa.inference.save_pretrained`."""
        from pc_ewa.inference import save_pretrained

        return save_pretrained(self, folder, **options)

    def push_to_hub(self, repo: str, **options: Any) -> str:
        """Upload the same folder to the Hugging Face Hub; see `pc_ewa.inference.push_to_hub`."""
        from pc_ewa.inference import push_to_hub

        return push_to_hub(self, repo, **options)
