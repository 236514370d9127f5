"""`show`: draw an object by the view for its type, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pc_ewa.data import Clouds
from pc_ewa.errors import ConfigError
from pc_ewa.eval import EvalSettings
from pc_ewa.validation import check_arguments, choose
from pc_ewa.viz.colours import by_height
from pc_ewa.viz.drawing import Renderer, draw, show_now
from pc_ewa.viz.pick import titles, unit_points
from pc_ewa.viz.scene import Panel, Picture, Scene, upright
from pc_ewa.viz.view import SUBJECTS
from pc_ewa.viz.views import VIEWS
from pc_ewa.viz.views.cloud import cloud

# The view of a pre-training model, by the name of its class.
_BY_MODEL = {"PointMAE": "reconstruction", "DiscreteVAE": "reconstruction", "PointBERT": "tokens"}


def show(
    what: Clouds | nn.Module | Picture | str | Path,
    shapes: int | Sequence[int] | Tensor = 0,
    *,
    view: str | None = None,
    path: str | Path | None = None,
    renderer: Renderer = "auto",
    **options: Any,
) -> Any:
    """Show clouds, a model at work, a file or a scene.

    Args:
        what: `Clouds`, a model, a file of a shape, or a scene made by a view.
        shapes: for `Clouds`, positions in them. For a model, clouds (B, N, 3) or (N, 3), as a tensor or NumPy array. A
            trained model samples and scales them as in evaluation. An untrained one gets them unchanged, y up.
        view: for a model, a key of VIEWS. None takes "reconstruction" or "tokens" for a pre-training model, "attention"
            for a model with a class token, and "patches" for others.
        path: a file to write: .png, .svg, .pdf or .html. None shows the picture at once, in a notebook or a window.
        renderer: "auto", "open3d", "matplotlib" or "plotly".
        options: of the view.

    Returns:
        The plotly figure in a notebook without `path`, else None.

    Raises:
        ConfigError: a view that is not for this model, an object that cannot be shown, or no display and no `path`.

    Example:
        >>> clouds = pc_ewa.load_dataset("sweethome3d", "test")
        >>> pc_ewa.viz.show(clouds, [0, 7], path="two.svg")
    """
    picture = scene_of(what, shapes, view, **options)
    if path is not None:
        draw([(picture, Path(path))], renderer)
        return None
    if not isinstance(picture, Scene):
        raise ConfigError("a chart is written to a file; give path=chart.png")
    return show_now(picture, renderer)


def scene_of(what: Any, shapes: int | Sequence[int] | Tensor = 0, view: str | None = None, **options: Any) -> Picture:
    """Return the scene that `show` draws."""
    if isinstance(what, Picture):
        return what
    if isinstance(what, str | Path):
        return cloud([Path(what)], **options)
    if isinstance(what, Clouds):
        chosen = [int(shapes)] if isinstance(shapes, int | np.integer) else [int(i) for i in shapes]
        return _clouds(what, chosen)
    if isinstance(what, nn.Module):
        return _model(what, shapes, view, options)
    raise ConfigError(f"a {type(what).__name__} cannot be shown; give Clouds, a model, a file or a scene")


def _clouds(clouds: Clouds, shapes: Sequence[int]) -> Scene:
    points = [upright(cloud, clouds.up_axis) for cloud in unit_points(clouds, shapes)]
    panels = [Panel(p, by_height(p), title) for p, title in zip(points, titles(clouds, shapes), strict=True)]
    return Scene(clouds.name, panels)


def _model(model: nn.Module, points: Any, view: str | None, options: dict[str, Any]) -> Picture:
    if isinstance(points, np.ndarray) and points.dtype.kind in "fiu":
        points = torch.from_numpy(points.astype(np.float32))
    if not isinstance(points, Tensor) or points.dim() not in (2, 3) or points.shape[-1] != 3 or not points.numel():
        raise ConfigError("a model is shown on clouds: give points (B, N, 3), or (N, 3) for one")
    points = points.detach().float().cpu().reshape(-1, points.shape[-2], 3)
    labels = torch.zeros(len(points), dtype=torch.int64)
    how = getattr(model, "preprocessing", None)  # None for an untrained model
    clouds = Clouds(points, None, labels, ("cloud",), (how and how.up_axis) or "y", type(model).__name__)
    settings = EvalSettings(points.shape[1], normalize=False)
    if how:
        settings = EvalSettings(min(how.num_points, points.shape[1]), how.normalize, how.sampling)
    # Point-BERT keeps its encoder, and the class token with it, in `transformer_q`, the key of the official code.
    encoder = getattr(model, "transformer_q", model)
    usual = "attention" if hasattr(encoder, "cls_token") else "patches"
    chosen = choose("view", view or _BY_MODEL.get(type(model).__name__, usual), VIEWS)
    if not {"model"} <= chosen.needs <= {"model", "clouds", "settings"}:
        able = [name for name, v in VIEWS.items() if {"model"} <= v.needs <= {"model", "clouds", "settings"}]
        raise ConfigError(f"view={view!r} needs more than a model and clouds; choose from {', '.join(able)}")
    options = check_arguments("show", chosen.make, {"shapes": list(range(len(points)))} | options, skip=SUBJECTS)
    return chosen.make(clouds=clouds, model=model, settings=settings, **options)
