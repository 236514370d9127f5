"""The base class of our models: the record that a trained one carries beside its weights, and methods to use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from pc_ewa.errors import ConfigError

_UP_AXES = ("x", "y", "z")
_MOST_POINTS = 1 << 24  # points of a cloud; a config with more is damaged, and would exhaust the memory


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of a cloud of any size to the points that a model was trained on.

    Attributes:
        num_points: number of points in the input of the model.
        stored_points: points of a cloud in the training data. A cloud with more points is first sampled to that number
            at random, and one with fewer repeats some. None means that the number is unknown; clouds are then used
            whole.
        sampling: the method that samples `num_points` of them: "farthest" or "random".
        normalize: centre and scale each cloud into the unit sphere.
        up_axis: the axis that pointed up in the training data. None means that it is unknown.

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
    """Return the smallest number of points that a model needs for its patches and levels."""
    sizes: list[int] = [model.num_groups, model.group_size, *getattr(model, "levels", ())]  # type: ignore[list-item]
    return max(sizes)


class PointModel(nn.Module):
    """A network on clouds. Its state_dict has only the weights. The attributes are for use after training.

    Attributes:
        class_names: the name of each class. None for an untrained model.
        preprocessing: the preprocessing of clouds in training. None for an untrained model.
        parts_of: for segmenters: the parts that each class can have. None allows all parts.
        precision: "fp32", or "bf16" to predict in autocast.
        built_as: its name in MODELS and all arguments of `create_model`.
        training_record: the config, data, metrics and licence of its training run, as far as they are known.
        notes: remarks for the user about the file that it was loaded from, one line each.

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
        """Classify or segment clouds, files or folders. See `pc_ewa.inference.predict`."""
        from pc_ewa.inference import predict

        return predict(self, inputs, **options)

    def show(self, points: Any, **options: Any) -> Any:
        """Show the reconstruction or the attention of the model on clouds (B, N, 3). See `pc_ewa.viz.show`."""
        from pc_ewa.viz import show

        return show(self, points, **options)

    def save_pretrained(self, folder: str | Path, **options: Any) -> Path:
        """Write config.json, model.safetensors and a model card to a folder. See `pc_ewa.inference.save_pretrained`."""
        from pc_ewa.inference import save_pretrained

        return save_pretrained(self, folder, **options)

    def push_to_hub(self, repo: str, **options: Any) -> str:
        """Upload the same folder to the Hugging Face Hub. See `pc_ewa.inference.push_to_hub`."""
        from pc_ewa.inference import push_to_hub

        return push_to_hub(self, repo, **options)
