"""Point-BERT's pre-training is the official one: keys, sizes, what it computes, and how its state moves on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from parity import filled_by_rule
from torch import Tensor, nn

from pc_ewa import ops
from pc_ewa.errors import ConfigError
from pc_ewa.ewa import ExpertAverager, expert_layers, merge_experts, upcycle
from pc_ewa.models.contrast import cutmix
from pc_ewa.models.dvae import DiscreteVAE
from pc_ewa.models.point_bert import PointBERT
from pc_ewa.validation import check_arguments

Clouds = Callable[..., Tensor]
TOKENIZER: dict[str, Any] = {
    **{"num_groups": 8, "group_size": 4, "encoder_dim": 10, "num_tokens": 12, "tokens_dim": 5, "decoder_dim": 8},
    **{"encoder_width": 4, "graph_width": 4, "decoder_width": 7},
}
SMALL: dict[str, Any] = TOKENIZER | {
    **{"dim": 12, "depth": 2, "num_heads": 3, "drop_path": 0.0, "contrast_dim": 6, "queue_size": 10},
    **{"momentum": 0.9, "mask_ratio": (0.3, 0.7)},
}


def build(**arguments: object) -> PointBERT:
    """A small model in float64, its weights by the rule that the official figures were computed with."""
    model = filled_by_rule(PointBERT(**{**SMALL, **arguments}).double())
    model.queue.copy_(F.normalize(model.queue, dim=0))
    return model


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def official_shapes(dim: int, depth: int, words: int, contrast: int, queue: int) -> list[tuple[str, tuple[int, ...]]]:
    """Keys and shapes of the official checkpoints but for the tokenizer's, in their order."""
    shapes: dict[str, tuple[int, ...]] = {"queue": (contrast, queue), "queue_ptr": (1,)}

    def layer(name: str, *weight: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = weight
        if bias:
            shapes[f"{name}.bias"] = weight[:1]

    for half in ("transformer_q", "transformer_k"):
        for token in ("cls_token", "mask_token", "cls_pos"):
            shapes[f"{half}.{token}"] = (1, 1, dim)
        for name, width, (into, out) in (("first_conv", 128, (3, 256)), ("second_conv", 512, (512, 256))):
            layer(f"{half}.encoder.{name}.0", width, into, 1)
            layer(f"{half}.encoder.{name}.1", width)
            for buffer in ("running_mean", "running_var"):
                shapes[f"{half}.encoder.{name}.1.{buffer}"] = (width,)
            shapes[f"{half}.encoder.{name}.1.num_batches_tracked"] = ()
            layer(f"{half}.encoder.{name}.3", out, width, 1)
        layer(f"{half}.reduce_dim", dim, 256)
        layer(f"{half}.pos_embed.0", 128, 3)
        layer(f"{half}.pos_embed.2", dim, 128)
        for i in range(depth):
            block = f"{half}.blocks.blocks.{i}"
            layer(f"{block}.norm1", dim)
            layer(f"{block}.norm2", dim)
            layer(f"{block}.mlp.fc1", 4 * dim, dim)
            layer(f"{block}.mlp.fc2", dim, 4 * dim)
            layer(f"{block}.attn.qkv", 3 * dim, dim, bias=False)
            layer(f"{block}.attn.proj", dim, dim)
        layer(f"{half}.norm", dim)
        layer(f"{half}.lm_head", words, dim)
        layer(f"{half}.cls_head.0", contrast, dim)
        layer(f"{half}.cls_head.2", contrast, contrast)
    return list(shapes.items())


def test_keys_shapes_order_and_size_are_official(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda tensor, **_: tensor)  # half of the time, and of no use here
    model = PointBERT()
    state = [(key, tuple(value.shape)) for key, value in model.state_dict().items()]
    tokenizer = [(f"dvae.{key}", tuple(value.shape)) for key, value in DiscreteVAE().state_dict().items()]
    assert state == official_shapes(384, 12, 8192, 512, 16384) + tokenizer
    assert len(state) == 411
    assert sum(parameter.numel() for parameter in model.parameters()) == 78_566_683


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


# The network as the official code writes it: channels first, everything concatenated, one sample after the other.


class Official:
    """The official step on the weights of a model; draws as ours does: mask, mixture, its mask, mask of the keys."""

    def __init__(self, model: PointBERT, generator: torch.Generator | None) -> None:
        self.model, self.draws, self.training = model, generator, model.training
        self.state = snapshot(model)
        self.leaves = {n: self.state[n].requires_grad_() for n, p in model.named_parameters() if p.requires_grad}

    def loss(self, points: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        groups, centers = ops.group(points, 8, 4)
        with torch.no_grad():
            words = self.model.dvae.encode(groups, centers).argmax(-1)
        mask = self.mask(centers) if mask is None else mask
        query, scores = self.transformer("transformer_q", groups, centers, mask)
        share = torch.rand(len(points), generator=self.draws)
        keep = (torch.rand(len(points), 8, generator=self.draws) < share[:, None]).double()
        mixed_groups = groups * keep[..., None, None] + groups.flip(0) * (1 - keep[..., None, None])
        mixed_centers = centers * keep[..., None] + centers.flip(0) * (1 - keep[..., None])
        mixed_words = (words * keep + words.flip(0) * (1 - keep)).long()
        mixed_mask = self.mask(mixed_centers)
        mixed, mixed_scores = self.transformer("transformer_q", mixed_groups, mixed_centers, mixed_mask)
        with torch.no_grad():
            keys = F.normalize(self.transformer("transformer_k", groups, centers, self.mask(centers))[0], dim=1)
        query, mixed, queue = F.normalize(query, dim=1), F.normalize(mixed, dim=1), self.state["queue"]
        tokens = F.cross_entropy(scores[mask], words[mask])
        tokens = tokens + F.cross_entropy(mixed_scores[mixed_mask], mixed_words[mixed_mask])
        near = torch.cat([torch.einsum("nc,nc->n", query, keys)[:, None], query @ queue], dim=1) / 0.07
        logits = torch.cat([torch.einsum("nc,mc->nm", mixed, keys), mixed @ queue], dim=1) / 0.07
        target = torch.arange(len(points))
        one, two = (F.cross_entropy(logits, t, reduction="none") for t in (target, target.flip(0)))
        accuracy = (scores[mask].argmax(-1) == words[mask]).double().mean()
        return {
            "token_loss": tokens,
            "cutmix_loss": (share * one + (1 - share) * two).mean(),
            "moco_loss": F.cross_entropy(near, torch.zeros_like(target)),
            **{"token_accuracy": accuracy, "logits": scores[mask], "mask": mask, "keys": keys},
        }

    def mask(self, centers: Tensor) -> Tensor:
        ratios = 0.3 + 0.4 * torch.rand(len(centers), generator=self.draws)
        seeds = torch.randint(8, (len(centers), 1, 1), generator=self.draws).flatten()
        mask = torch.zeros(len(centers), 8, dtype=torch.bool)
        for i, (cloud, seed, ratio) in enumerate(zip(centers, seeds, ratios, strict=True)):
            mask[i, (cloud[seed] - cloud).norm(dim=-1).argsort()[: int(ratio * 8)]] = True
        return mask

    def transformer(self, half: str, groups: Tensor, centers: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        w = {name.removeprefix(f"{half}."): v for name, v in self.state.items() if name.startswith(half)}

        def linear(name: str, x: Tensor) -> Tensor:
            return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

        def norm(name: str, x: Tensor) -> Tensor:
            return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

        def convolutions(name: str, x: Tensor) -> Tensor:
            x = F.conv1d(x, w[f"{name}.0.weight"], w[f"{name}.0.bias"])
            running = w[f"{name}.1.running_mean"], w[f"{name}.1.running_var"]
            x = F.batch_norm(x, *running, w[f"{name}.1.weight"], w[f"{name}.1.bias"], training=self.training)
            return F.conv1d(x.relu(), w[f"{name}.3.weight"], w[f"{name}.3.bias"])

        local = convolutions("encoder.first_conv", groups.flatten(0, 1).transpose(1, 2))
        both = torch.cat([local.max(dim=2, keepdim=True).values.expand_as(local), local], dim=1)
        tokens = convolutions("encoder.second_conv", both).max(dim=2).values.unflatten(0, groups.shape[:2])
        hidden = mask[..., None].double()
        tokens = linear("reduce_dim", tokens) * (1 - hidden) + w["mask_token"].expand(len(mask), 8, -1) * hidden
        x = torch.cat([w["cls_token"].expand(len(mask), -1, -1), tokens], dim=1)
        embedded = linear("pos_embed.2", F.gelu(linear("pos_embed.0", centers)))
        position = torch.cat([w["cls_pos"].expand(len(mask), -1, -1), embedded], dim=1)
        for i in range(2):
            block = f"blocks.blocks.{i}"
            x = x + position
            qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x)).unflatten(2, (3, 3, -1))
            query, key, value = qkv.permute(2, 0, 3, 1, 4)
            attention = (query @ key.transpose(2, 3) * query.shape[-1] ** -0.5).softmax(dim=-1)
            x = x + linear(f"{block}.attn.proj", (attention @ value).transpose(1, 2).flatten(2))
            x = x + linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x))))
        x = norm("norm", x)
        return linear("cls_head.2", F.gelu(linear("cls_head.0", x[:, 0]))), linear("lm_head", x[:, 1:])


@pytest.mark.parametrize("moco", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_it_is_the_official_one_forward_and_backward(training: bool, moco: bool, clouds: Clouds) -> None:
    model, points = build(moco_loss=moco).train(training), clouds(3, 4, 40).double()
    official = Official(model, None if training else torch.Generator().manual_seed(0))
    torch.manual_seed(7)
    loss, parts = model(points)
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
    parts = model(points, mask).parts
    assert torch.equal(parts["mask"], mask)
    expected = Official(model, torch.Generator().manual_seed(0)).loss(points, mask)
    torch.testing.assert_close(parts["logits"], expected["logits"], rtol=0, atol=1e-10)
    torch.testing.assert_close(parts["token_loss"], expected["token_loss"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("mask", [torch.ones(3, 7, dtype=torch.bool), torch.ones(3, 8)], ids=["shape", "type"])
def test_masks_that_do_not_fit_are_refused(mask: Tensor, clouds: Clouds) -> None:
    with pytest.raises(ValueError, match=r"mask is \(3, .*; expected \(3, 8\) bool"):
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
    assert not torch.equal(first.parts["mask"], second.parts["mask"])
    model.eval()
    first, second = model(points), model(points)
    assert torch.equal(first.loss, second.loss)
    assert all(torch.equal(value, second.parts[name]) for name, value in first.parts.items())


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


# State: the tokenizer, the queue, the momentum.


def test_the_tokenizer_stays_in_evaluation_unless_it_is_live(clouds: Clouds) -> None:
    points = clouds(0, 3, 40).double()
    for live in (False, True):
        model = build(live_tokenizer=live)
        for mode in (None, True, False):
            if mode is not None:
                assert model.train(mode) is model
            assert model.transformer_k.training == (mode is not False)
            assert {m.training for m in model.dvae.modules()} == {live and mode is not False}
        before = snapshot(model.train())
        model(points)
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert any(name.startswith("dvae.encoder") for name in changed) == live
        assert all("running" in name or "num_batches" in name for name in changed), "the rest waits for after_step"


def test_a_tokenizer_is_loaded_and_its_encoder_handed_on(clouds: Clouds) -> None:
    torch.manual_seed(0)
    model, tokenizer = build(), DiscreteVAE(**TOKENIZER).double()
    tokenizer(clouds(0, 3, 40).double())  # moves the running statistics
    model.load_tokenizer(tokenizer.state_dict())
    for name, value in tokenizer.state_dict().items():
        places = ["dvae.", "transformer_q.", "transformer_k."] if name.startswith("encoder.") else ["dvae."]
        assert all(torch.equal(model.state_dict()[place + name], value) for place in places)
    assert not any(parameter.requires_grad for parameter in model.dvae.parameters())
    groups, centers = ops.group(clouds(1, 2, 40).double(), 8, 4)
    assert torch.equal(model.dvae.tokenize(groups, centers), tokenizer.eval().tokenize(groups, centers))
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_tokenizer({})


def forwards(model: PointBERT, points: Tensor, *keys: Tensor) -> None:
    """Run the model once for each (B, D), which its key network returns before they are normalised."""
    given = iter(keys)
    model.transformer_k.describe = lambda *_: next(given)  # type: ignore[method-assign]
    for key in keys:
        model(points[: len(key)])


def test_the_queue_takes_keys_up_in_order_and_wraps_around(clouds: Clouds) -> None:
    torch.manual_seed(0)
    model, points, keys = build(), clouds(0, 6, 40).double(), torch.randn(22, 6).double()
    unit = keys / keys.norm(dim=1, keepdim=True)
    expected = model.queue.clone()
    forwards(model, points, keys[:4])
    assert torch.equal(model.queue, expected), "nothing moves before after_step"
    model.after_step()
    expected[:, :4] = unit[:4].T
    torch.testing.assert_close(model.queue, expected)
    assert model.queue_ptr.tolist() == [4]
    forwards(model, points, keys[4:7], keys[7:12])  # two parts of one step: 6 slots are left for 8 keys
    model.after_step()
    expected[:, 4:] = unit[4:10].T
    expected[:, :2] = unit[10:12].T
    torch.testing.assert_close(model.queue, expected)
    assert model.queue_ptr.tolist() == [2]
    forwards(model, points, keys[12:17], keys[17:22])  # exactly as many as there are slots
    model.after_step()
    torch.testing.assert_close(model.queue, unit[12:22].T.roll(2, dims=1))
    assert model.queue_ptr.tolist() == [2]
    model.after_step()
    assert model.queue_ptr.tolist() == [2], "keys are taken up once"


def test_keys_of_all_processes_are_taken_up_rank_by_rank(clouds: Clouds, monkeypatch: pytest.MonkeyPatch) -> None:
    def all_gather(everyone: list[Tensor], own: Tensor) -> None:
        for rank, tensor in enumerate(everyone):
            tensor.copy_(own + rank)

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather", all_gather)
    torch.manual_seed(0)
    model, keys = build(), F.normalize(torch.randn(4, 6).double(), dim=1)
    forwards(model, clouds(0, 2, 40).double(), keys[:2], keys[2:])
    model.after_step()
    torch.testing.assert_close(model.queue[:, :8], torch.cat([keys, keys + 1]).T)
    assert model.queue_ptr.tolist() == [8]


def test_more_keys_than_the_queue_holds_are_refused(clouds: Clouds) -> None:
    model, points = build(queue_size=5), clouds(0, 6, 40).double()
    model(points)
    with pytest.raises(ValueError, match="6 keys for a queue of 5; make queue_size at least 6"):
        model.after_step()


def test_only_forwards_that_train_leave_keys(clouds: Clouds) -> None:
    model, points = build(), clouds(0, 3, 40).double()
    with torch.no_grad():
        model(points)
    model.eval()(points)
    model.train().features(points)
    before = model.queue.clone()
    model.after_step()
    assert torch.equal(model.queue, before)
    assert model.queue_ptr.tolist() == [0]


def test_the_key_network_follows_the_weights_and_not_the_buffers(clouds: Clouds) -> None:
    model = build()
    model(clouds(0, 3, 40).double())
    before = snapshot(model)
    model.after_step()
    model.after_step()
    for name, value in model.state_dict().items():
        part, _, rest = name.partition(".")
        if part == "transformer_k" and rest in dict(model.transformer_q.named_parameters()):
            once = 0.9 * before[name] + 0.1 * before[f"transformer_q.{rest}"]
            expected = 0.9 * once + 0.1 * before[f"transformer_q.{rest}"]
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-14)
            assert not torch.equal(value, before[name])
        elif not name.startswith("queue"):
            assert torch.equal(value, before[name]), name


def test_the_key_network_follows_the_mean_of_the_experts() -> None:
    model = build()
    upcycle(model, 3, "all", init="independent")
    assert list(expert_layers(model)) == [f"transformer_q.blocks.blocks.{i}.mlp" for i in range(2)]
    before = snapshot(model)
    averager = ExpertAverager(model, 0.3, "constant")
    model.after_step()
    name = "blocks.blocks.1.mlp.fc1.weight"
    experts = before["transformer_q.blocks.blocks.1.mlp.experts.fc1.weight"]
    expected = 0.9 * before[f"transformer_k.{name}"] + 0.1 * experts.mean(0)
    torch.testing.assert_close(model.state_dict()[f"transformer_k.{name}"], expected, rtol=0, atol=1e-14)
    averager.step()
    model.after_step()
    expected = 0.9 * expected + 0.1 * experts.mean(0)  # averaging moves the experts, not their mean
    assert not torch.equal(model.state_dict()["transformer_q.blocks.blocks.1.mlp.experts.fc1.weight"], experts)
    torch.testing.assert_close(model.state_dict()[f"transformer_k.{name}"], expected, rtol=0, atol=1e-14)
    assert list(merge_experts(model).state_dict()) == list(build().state_dict())


def test_bf16_autocast_trains_with_losses_in_float32(clouds: Clouds) -> None:
    torch.manual_seed(0)
    model, points = PointBERT(**SMALL, moco_loss=True), clouds(0, 4, 40)
    with torch.autocast("cpu", torch.bfloat16):
        loss, parts = model(points)
        features = model.eval().features(points)
    loss.backward()
    model.after_step()
    assert {loss.dtype, model.queue.dtype, *(v.dtype for n, v in parts.items() if "loss" in n)} == {torch.float32}
    torch.testing.assert_close(model.queue.norm(dim=0), torch.ones(10))
    torch.testing.assert_close(features.float(), model.features(points), rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_ratio": (0.5, 0.4)}, r"mask_ratio=\(0\.5, 0\.4\) with num_groups=8; give the least share first"),
        ({"mask_ratio": (0.1, 0.4)}, r"which must hide a patch"),
        ({"mask_ratio": (0.5, 1.0)}, r"the greatest below 1"),
        ({"queue_size": 0}, r"queue_size=0; it must be at least 1"),
        ({"momentum": 1.0}, r"momentum=1\.0; it must be at least 0 and below 1"),
        ({"contrast_temperature": 0.0}, r"contrast_temperature=0\.0; it must be above 0"),
        ({"num_heads": 5}, r"num_heads=5 does not divide dim=12"),
        ({"mlp_ratio": 0.01}, r"mlp_ratio=0\.01 with dim=12 leaves the FFN no hidden unit"),
        ({"group_size": 6}, r"group_size=6; it must be a multiple of 4"),
        ({"num_groups": 3}, r"num_groups=3; "),
        ({"mask_type": "blok"}, r"mask_type='blok': should be 'block' or 'rand'"),
        ({"mask_ratio": 0.4}, r"mask_ratio=0\.4"),
    ],
    ids=str,
)
def test_impossible_models_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PointBERT(**check_arguments("point_bert", PointBERT, {**SMALL, **arguments}))
