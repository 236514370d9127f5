"""Predictions of a trained model on clouds of any size, with the forward pass of evaluation."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pc_ewa import ops
from pc_ewa.data import UpAxis
from pc_ewa.errors import ConfigError, DataError, OutputError
from pc_ewa.eval import EvalSettings
from pc_ewa.eval.batches import evaluation_mode
from pc_ewa.eval.segmentation import predict_parts
from pc_ewa.inference.clouds import Input, Presented, as_inputs, check_up, present
from pc_ewa.models.base import Preprocessing, least_points
from pc_ewa.validation import nearest

OnError = Callable[[Input, DataError], None]


@dataclass(frozen=True, eq=False)
class Prediction:
    """The predicted class of a cloud.

    Attributes:
        name: the name of the file, or "cloud" and its position.
        logits: (classes,) float32, on the CPU.
        class_names: the name of each class.

    Example:
        >>> prediction = pc_ewa.inference.Prediction("chair.ply", torch.tensor([0.0, 2.0]), ("bed", "chair"))
        >>> prediction.label, round(prediction.probability, 2)
        ('chair', 0.88)
    """

    name: str
    logits: Tensor
    class_names: tuple[str, ...]

    @property
    def probabilities(self) -> Tensor:
        """The probability of each class, (classes,)."""
        return self.logits.softmax(0)

    @property
    def label(self) -> str:
        """The name of the most probable class."""
        return self.class_names[int(self.logits.argmax())]

    @property
    def probability(self) -> float:
        """The probability of the most probable class."""
        return float(self.probabilities.max())

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """Return the names of the `count` most probable classes and their probabilities, the highest first.

        Raises:
            ConfigError: a count below 0.
        """
        if not isinstance(count, int) or count < 0:
            raise ConfigError(f"top({count!r}); give a whole number of classes")
        values, index = self.probabilities.topk(min(count, len(self.class_names)))
        return [(self.class_names[i], value) for i, value in zip(index.tolist(), values.tolist(), strict=True)]


@dataclass(frozen=True, eq=False)
class PartPrediction:
    """The predicted part of each point of a cloud.

    Attributes:
        name: the name of the file, or "cloud" and its position.
        category: the given class of the cloud.
        points: (V, 3) float32, all points of the cloud, or the vertices of the mesh. If the cloud was rotated, or moved
            to the origin because it was far away, these are the coordinates after that.
        parts: (V,) int64, the part of each point. It is the part of the nearest point in the input of the model.

    Example:
        >>> points, parts = torch.rand(3, 3), torch.tensor([0, 0, 1])
        >>> pc_ewa.inference.PartPrediction("chair.ply", "chair", points, parts).parts.bincount()
        tensor([2, 1])
    """

    name: str
    category: str
    points: Tensor
    parts: Tensor


def predict(
    model: nn.Module,
    inputs: Any,
    *,
    category: str | None = None,
    up: UpAxis | None = None,
    batch_size: int = 64,
) -> Any:
    """Classify or segment clouds of any size, with the preprocessing of the training data.

    The same points always give the same prediction, whatever the name of their file.

    Args:
        model: a model from `load_model` or `from_pretrained`.
        inputs: points (P, 3) or (B, P, 3), a file, a folder with files at any depth, or a list of such. Meshes are
            sampled on their surface.
        category: for segmenters only: the class of the shapes. It may be omitted if the model has only one class.
        up: the axis that points up in these clouds, if it is not `model.preprocessing.up_axis`. The clouds are rotated.
            None leaves them as they are.
        batch_size: number of clouds in one forward pass.

    Returns:
        A `Prediction`, or for a segmenter a `PartPrediction`. For a batch, a list or a folder it is a list of them.

    Raises:
        ConfigError: the model cannot predict, or the category or axis is unknown.
        DataError: a cloud cannot be read or used.
        OutputError: the output of the model has NaN or inf.

    Example:
        >>> model = pc_ewa.load_model("furniture", device="cpu")
        >>> prediction = pc_ewa.inference.predict(model, torch.rand(5000, 3))  # or model.predict(...)
        >>> len(prediction.top(3)), prediction.label in model.class_names
        (3, True)
    """
    clouds, single = as_inputs(inputs)
    found = list(predict_each(model, clouds, category=category, up=up, batch_size=batch_size))
    return found[0] if single else found


def predict_each(
    model: nn.Module,
    clouds: Sequence[Input],
    *,
    category: str | None = None,
    up: UpAxis | None = None,
    batch_size: int = 64,
    on_error: OnError | None = None,
) -> Iterator[Any]:
    """Yield the predictions for clouds in their order. One batch is in memory at a time.

    Args:
        model: as in `predict`.
        clouds: the clouds, from `as_inputs`.
        category: as in `predict`.
        up: as in `predict`.
        batch_size: as in `predict`.
        on_error: a function that is called with each cloud that cannot be used, and the error. The cloud is then left
            out. None raises the first error.

    Example:
        >>> model = pc_ewa.load_model("furniture", device="cpu")
        >>> clouds, _ = pc_ewa.inference.as_inputs(torch.rand(3, 2000, 3))
        >>> [prediction.name for prediction in pc_ewa.inference.predict_each(model, clouds)]
        ['cloud 0', 'cloud 1', 'cloud 2']
    """
    preprocessing = check_ready(model)
    check_up(up, preprocessing)
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size={batch_size!r}; give a whole number of 1 or more")
    label = _category(model, category)
    for begin in range(0, len(clouds), batch_size):
        batch = []
        for cloud in clouds[begin : begin + batch_size]:
            try:
                batch.append(present(cloud, preprocessing, up, keep_all=label is not None))
            except DataError as error:
                if on_error is None:
                    raise
                on_error(cloud, error)
        if batch:
            yield from _forward(model, preprocessing, batch, label)


def check_ready(model: nn.Module) -> Preprocessing:
    """Return the preprocessing of a model that is ready to predict.

    Raises:
        ConfigError: the model has no classes or parts, or is not trained.
    """
    name, task = type(model).__name__, getattr(model, "task", None)
    if task not in ("classify", "segment"):
        raise ConfigError(f"{name} is built to {task}: it has no classes; fine-tune a classifier from it")
    preprocessing: Preprocessing | None = getattr(model, "preprocessing", None)
    if preprocessing is None or getattr(model, "class_names", None) is None:
        raise ConfigError(
            f"this {name} has no class_names or preprocessing; load a trained one with pc_ewa.load_model, or set "
            "model.class_names and model.preprocessing"
        )
    if not isinstance(preprocessing, Preprocessing):
        raise ConfigError(f"model.preprocessing is a {type(preprocessing).__name__}; set a Preprocessing")
    if preprocessing.num_points < (least := least_points(model)):
        raise ConfigError(f"preprocessing.num_points={preprocessing.num_points}; this {name} needs at least {least}")
    dtype = next(model.parameters()).dtype
    if dtype != torch.float32:  # autocast needs float32 weights too
        raise ConfigError(f'the weights of this {name} are {dtype}; use model.float(), with model.precision = "bf16"')
    return preprocessing


def _category(model: Any, category: str | None) -> int | None:
    """Return the index of the category for a segmenter. None stands for a classifier."""
    names: tuple[str, ...] = model.class_names
    if model.task == "classify":
        if category is not None:
            raise ConfigError(f"category={category!r}, but {type(model).__name__} predicts the class; leave it out")
        return None
    if category is None:
        if len(names) > 1:
            raise ConfigError(f"category is missing: a segmenter needs the class; choose from {', '.join(names)}")
        return 0
    if category not in names:
        raise ConfigError(f"unknown category {category!r}; {nearest(category, names)}")
    return names.index(category)


def _forward(
    model: Any, preprocessing: Preprocessing, batch: Sequence[Presented], label: int | None
) -> Iterator[Prediction | PartPrediction]:
    device = next(model.parameters()).device
    settings = EvalSettings(preprocessing.num_points, precision=getattr(model, "precision", "fp32"))
    points = torch.stack([cloud.points for cloud in batch]).to(device)
    with evaluation_mode(model, device, settings):
        if label is None:
            scores = model(points).float().cpu()
        else:
            labels = torch.full((len(batch),), label, device=device)
            scores = model(points, labels)
            every = [range(scores.shape[-1])] * len(model.class_names)
            parts = predict_parts(scores, labels, getattr(model, "parts_of", None) or every).cpu()
    if not scores.isfinite().all():  # argmax of NaN is a valid class, so the error would go unnoticed
        raise OutputError(f"{type(model).__name__} returns NaN or inf; check its weights, or use precision=fp32")
    if label is None:
        if len(model.class_names) != scores.shape[1]:
            raise ConfigError(f"{len(model.class_names)} class_names for {scores.shape[1]} classes; set one for each")
        yield from (Prediction(cloud.name, row, model.class_names) for cloud, row in zip(batch, scores, strict=True))
        return
    for cloud, row in zip(batch, parts, strict=True):
        assert cloud.all_points is not None  # present() was called with keep_all
        # The model labels `num_points` samples. Each point of the cloud takes the label of the nearest sample.
        nearest_seen = ops.knn(cloud.all_points[None], cloud.places[None], 1)[1][0, :, 0]
        yield PartPrediction(cloud.name, model.class_names[label], cloud.all_points, row[nearest_seen])
