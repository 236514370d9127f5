"""View `attention`: the attention of the class token on each patch."""

from torch import Tensor, nn

from pc_ewa.data import Clouds
from pc_ewa.errors import ConfigError
from pc_ewa.eval import EvalSettings
from pc_ewa.models.transformer import Attention
from pc_ewa.viz.colours import ramp, ramp_legend
from pc_ewa.viz.pick import looking_at, patch_of_point, patches_of, presented, titles
from pc_ewa.viz.scene import Panel, Scene, upright
from pc_ewa.viz.view import View


def attention(
    clouds: Clouds, model: nn.Module, settings: EvalSettings, *, shapes: tuple[int, ...] = (0, 1, 2), layer: int = -1
) -> Scene:
    """Show each patch in the colour of the class token's attention on it, averaged over the heads.

    Values are relative: 1 is the weight of every token under uniform attention. The ramp ends at the largest value of
    all shapes.

    Args:
        clouds: the dataset.
        model: a model with a class token: a classifier, or `PointBERT`.
        settings: the presentation of the clouds.
        shapes: positions in the dataset.
        layer: the index of the block, from 0. -1 is the last.

    Raises:
        ConfigError: a model without a class token, or a block or position out of range.
    """
    encoder = getattr(model, "transformer_q", model)
    if not hasattr(encoder, "cls_token"):
        raise ConfigError(f"{type(model).__name__} has no class token; choose a classifier or a point_bert")
    blocks = [module for module in encoder.modules() if isinstance(module, Attention)]
    if not -len(blocks) <= layer < len(blocks):
        raise ConfigError(f"layer={layer}; the model has blocks 0 to {len(blocks) - 1}, and -1 is the last")
    # `Attention` calls a fused kernel that does not return its weights. A pre-hook computes them from the input.
    seen: list[Tensor] = []
    hook = blocks[layer].register_forward_pre_hook(lambda block, inputs: seen.append(_weights(block, inputs[0])))
    try:
        with looking_at(model):
            points, labels = presented(clouds, shapes, settings, model)
            _, centers = patches_of(model, points)
            owner = patch_of_point(points, centers)
            _run(model, points, labels)
    finally:
        hook.remove()
    # Times the number of tokens: uniform attention is then 1. Column 0 is the class token itself.
    relative = (seen[0] * seen[0].shape[1])[:, 1:].gather(1, owner).cpu().numpy()
    top = float(relative.max())
    panels = [
        Panel(upright(cloud, clouds.up_axis), ramp(values, 0, top), title)
        for cloud, values, title in zip(points, relative, titles(clouds, shapes), strict=True)
    ]
    block = layer % len(blocks) + 1
    title = f"attention of the class token in block {block} of {len(blocks)}, in units of even attention"
    return Scene(title, panels, ramp_legend("attention", 0, top))


def _run(model: nn.Module, points: Tensor, labels: Tensor) -> None:
    # The forward pass of Point-BERT masks patches; `features` does not.
    if hasattr(model, "transformer_q"):
        model.features(points)  # type: ignore[operator]
    elif getattr(model, "task", "") == "segment":
        model(points, labels)
    else:
        model(points)


def _weights(block: nn.Module, x: Tensor) -> Tensor:
    """Compute the attention weights (B, T) of the first of the tokens (B, T, C), averaged over the heads."""
    assert isinstance(block, Attention)
    batch, count, width = x.shape
    query, key, _ = block.qkv(x).view(batch, count, 3, block.num_heads, -1).unbind(2)
    scores = (query[:, :1] * key).sum(-1).float() * (width / block.num_heads) ** -0.5  # (B, T, heads)
    return scores.softmax(dim=1).mean(dim=2)


VIEW = View("attention of the class token on the patches", attention)
