"""Point-BERT's pre-training computes what the official one does, and draws as published."""

from collections.abc import Callable

import pytest
import torch
from official_point_bert import SMALL, Official, build
from torch import Tensor

from pc_ewa import ops
from pc_ewa.errors import ConfigError
from pc_ewa.ewa import expert_layers, upcycle
from pc_ewa.models.contrast import cutmix
from pc_ewa.models.point_bert import PointBERT
from pc_ewa.validation import check_arguments

Clouds = Callable[..., Tensor]


def test_it_starts_as_the_official_one() -> None:
    torch.manual_seed(0)
    model = PointBERT(**{**SMALL, "dim": 96, "queue_size": 50})
    query, key = model.transformer_q.state_dict(), model.transformer_k.state_dict()
    assert all(torch.equal(value, key[name]) for name, value in query.items())
    for name in ("cls_token", "mask_token", "cls_pos", "lm_head.weight", "blocks.blocks.1.mlp.fc1.weight"):
        assert query[name].std().item() == pytest.approx(0.02, rel=0.3), name
    assert not any(value.any() for name, value in query.items() if name.endswith(("fc1.bias", "lm_head.bias")))
    torch.testing.assert_close(model.queue.norm(dim=0), torch.ones(50))
    assert model.queue_ptr.tolist() == [0]


@pytest.mark.parametrize("moco", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_it_is_the_official_one_forward_and_backward(training: bool, moco: bool, clouds: Clouds) -> None:
    model, points = build(moco_loss=moco).train(training), clouds(3, 4, 40).double()
    official = Official(model, None if training else torch.Generator().manual_seed(0))
    torch.manual_seed(7)
    output = model(points)
    loss, parts = output.loss, output.terms | output.outputs
    torch.manual_seed(7)
    expected = official.loss(points)
    keys = expected.pop("keys")
    if not moco:
        del expected["moco_loss"]
    assert set(parts) == set(expected)
    total = sum(value for name, value in expected.items() if name.endswith("_loss"))
    torch.testing.assert_close(loss, total, rtol=0, atol=1e-10)
    for name, value in parts.items():
        other = expected[name].to(value.dtype)
        torch.testing.assert_close(value, other, rtol=0, atol=1e-7 if name == "token_accuracy" else 1e-10)
    loss.backward()
    total.backward()  # type: ignore[union-attr]
    for name, leaf in official.leaves.items():
        gradient = model.get_parameter(name).grad
        torch.testing.assert_close(gradient, leaf.grad, rtol=0, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    state = model.state_dict()
    for name in (key for key in state if "running" in key):  # two passes of the queries, one of the keys
        torch.testing.assert_close(state[name], official.state[name], rtol=0, atol=1e-10)
    model.after_step()
    torch.testing.assert_close(model.queue[:, :4], keys.T if training else official.state["queue"][:, :4])


def test_features_are_official(clouds: Clouds) -> None:
    model, points = build().eval(), clouds(1, 3, 40).double()
    groups, centers = ops.group(points, 8, 4)
    nothing = torch.zeros(3, 8, dtype=torch.bool)
    expected, _ = Official(model, None).transformer("transformer_q", groups, centers, nothing)
    torch.testing.assert_close(model.features(points), expected, rtol=0, atol=1e-10)


def test_a_given_mask_may_hide_different_numbers(clouds: Clouds) -> None:
    model, points = build().eval(), clouds(1, 3, 40).double()
    mask = torch.arange(8) < torch.tensor([[1], [5], [0]])
    output = model(points, mask)
    parts = output.terms | output.outputs
    assert torch.equal(parts["mask"], mask)
    expected = Official(model, torch.Generator().manual_seed(0)).loss(points, mask)
    torch.testing.assert_close(parts["logits"], expected["logits"], rtol=0, atol=1e-10)
    torch.testing.assert_close(parts["token_loss"], expected["token_loss"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("mask", [torch.ones(3, 7, dtype=torch.bool), torch.ones(3, 8)], ids=["shape", "type"])
def test_masks_that_do_not_fit_are_refused(mask: Tensor, clouds: Clouds) -> None:
    with pytest.raises(ValueError, match=r"\(3, .*\(3, 8\) bool"):
        build()(clouds(1, 3, 40).double(), mask)


def test_masks_are_drawn_as_published(clouds: Clouds) -> None:
    torch.manual_seed(0)
    centers = clouds(0, 1, 64).expand(2000, -1, -1)
    model = PointBERT(**{**SMALL, "num_groups": 64, "mask_ratio": (0.25, 0.45)})
    counts = model.draw_mask(centers).sum(1)
    assert counts.unique().tolist() == list(range(16, 29)), "int(r 64) with r from 0.25 to 0.45, for each sample"
    assert counts.double().mean().item() == pytest.approx(21.9, abs=0.5)
    model.mask_type = "rand"
    shares = torch.stack([model.draw_mask(centers).double().mean() for _ in range(40)])
    assert 0.24 < shares.min() < 0.3
    assert 0.4 < shares.max() < 0.46
    one = model.draw_mask(centers).double()
    assert (one.mean(1) - one.mean()).abs().max() > 0.1, "each patch by chance, not the same number in each sample"
    assert one.mean(0).sub(one.mean()).abs().max() < 0.05


def test_cutmix_exchanges_patches_with_the_sample_from_the_other_end() -> None:
    torch.manual_seed(0)
    sample = torch.arange(3000.0)[:, None].expand(-1, 50)
    groups = sample[..., None, None].expand(-1, -1, 2, 3)
    (mixed_groups, mixed_sample), share = cutmix(groups, sample)
    kept = mixed_sample == sample
    assert torch.equal(mixed_sample, torch.where(kept, sample, 2999 - sample))
    assert torch.equal(mixed_groups, mixed_sample[..., None, None].expand_as(groups))
    assert (kept.double().mean(1) - share).abs().max() < 5 * (0.25 / 50) ** 0.5
    assert share.mean().item() == pytest.approx(0.5, abs=0.03)
    assert share.min() < 0.01
    assert share.max() > 0.99


def test_evaluation_is_deterministic_and_training_draws(clouds: Clouds) -> None:
    model, points = build(), clouds(0, 3, 40).double()
    first, second = model(points), model(points)
    assert not torch.equal(first.outputs["mask"], second.outputs["mask"])
    model.eval()
    first, second = model(points), model(points)
    assert torch.equal(first.loss, second.loss)
    for mine, other in ((first.terms, second.terms), (first.outputs, second.outputs)):
        assert all(torch.equal(value, other[name]) for name, value in mine.items())


@pytest.mark.parametrize("contrast", [True, False])
@pytest.mark.parametrize("upcycled", [False, True], ids=["dense", "upcycled"])
def test_what_is_not_frozen_is_trained(upcycled: bool, contrast: bool, clouds: Clouds) -> None:
    model = build(cutmix_loss=contrast)
    if upcycled:
        upcycle(model, 3, "all", init="independent")
    model(clouds(0, 8, 40).double()).loss.backward()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    no_use = {name for name in dict(model.named_parameters()) if name.startswith("transformer_q.cls_head")}
    assert frozen == {n for n, _ in model.named_parameters() if n.startswith(("transformer_k.", "dvae."))} | (
        set() if contrast else no_use
    )
    for name, parameter in model.named_parameters():
        if name in frozen:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
    for layer in expert_layers(model).values():
        assert all(gradient.any() for stack in layer.parameters() for gradient in stack.grad)  # type: ignore[union-attr]


def test_bf16_autocast_trains_with_losses_in_float32(clouds: Clouds) -> None:
    torch.manual_seed(0)
    model, points = PointBERT(**SMALL, moco_loss=True), clouds(0, 4, 40)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(points)
        loss, parts = output.loss, output.terms | output.outputs
        features = model.eval().features(points)
    loss.backward()
    model.after_step()
    assert {loss.dtype, model.queue.dtype, *(v.dtype for n, v in parts.items() if "loss" in n)} == {torch.float32}
    torch.testing.assert_close(model.queue.norm(dim=0), torch.ones(10))
    torch.testing.assert_close(features.float(), model.features(points), rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_ratio": (0.5, 0.4)}, r"mask_ratio=\(0\.5, 0\.4\).*num_groups=8"),
        ({"mask_ratio": (0.1, 0.4)}, r"mask_ratio=\(0\.1, 0\.4\)"),
        ({"mask_ratio": (0.5, 1.0)}, r"mask_ratio=\(0\.5, 1\.0\)"),
        ({"queue_size": 0}, r"queue_size=0"),
        ({"momentum": 1.0}, r"momentum=1\.0"),
        ({"contrast_temperature": 0.0}, r"contrast_temperature=0\.0"),
        ({"num_heads": 5}, r"num_heads=5 .*dim=12"),
        ({"mlp_ratio": 0.01}, r"mlp_ratio=0\.01 .*dim=12"),
        ({"group_size": 6}, r"group_size=6.* 4"),
        ({"num_groups": 3}, r"num_groups=3"),
        ({"mask_type": "blok"}, r"mask_type='blok'.*'block'.*'rand'"),
        ({"mask_ratio": 0.4}, r"mask_ratio=0\.4"),
    ],
    ids=str,
)
def test_impossible_models_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PointBERT(**check_arguments("point_bert", PointBERT, {**SMALL, **arguments}))
