"""The tokenizer is the official one: its outputs, loss and gradients, written here as published."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import filled_by_rule
from torch import Tensor, nn

from pc_ewa import ops
from pc_ewa.errors import ConfigError
from pc_ewa.ewa import upcycle
from pc_ewa.models.dgcnn import DGCNN, neighbour_graph
from pc_ewa.models.dvae import DiscreteVAE
from pc_ewa.validation import check_arguments

Clouds = Callable[..., Tensor]
SMALL: dict[str, Any] = {
    **{"num_groups": 8, "group_size": 8, "encoder_dim": 6, "num_tokens": 12, "tokens_dim": 5, "decoder_dim": 8},
    **{"encoder_width": 4, "graph_width": 4, "decoder_width": 7},
}


def build(**arguments: object) -> DiscreteVAE:
    """A small tokenizer in float64, its weights by the rule that the official numbers were computed with."""
    return filled_by_rule(DiscreteVAE(**{**SMALL, **arguments}).double())


# The network as the official code writes it: channels first, everything concatenated, every edge on its own.


class OfficialDGCNN(nn.Module):
    def __init__(self, channels: int, out: int, width: int) -> None:
        super().__init__()
        self.input_trans = nn.Conv1d(channels, width, 1)
        for i, (before, after) in enumerate([(1, 2), (2, 4), (4, 4), (4, 8)], start=1):
            conv = nn.Conv2d(2 * before * width, after * width, 1, bias=False)
            self.add_module(f"layer{i}", nn.Sequential(conv, nn.GroupNorm(4, after * width), nn.LeakyReLU(0.2)))
        conv = nn.Conv1d(18 * width, out, 1, bias=False)
        self.layer5 = nn.Sequential(conv, nn.GroupNorm(4, out), nn.LeakyReLU(0.2))

    def forward(self, features: Tensor, centers: Tensor) -> Tensor:
        index = torch.cdist(centers, centers).argsort(dim=2, stable=True)[:, :, :4]
        x, seen = self.input_trans(features.transpose(1, 2)), []
        for i in range(1, 5):
            near = torch.stack([sample[:, rows] for sample, rows in zip(x, index, strict=True)])
            own = x[..., None].expand_as(near)
            x = self.get_submodule(f"layer{i}")(torch.cat([near - own, own], dim=1)).max(dim=-1).values
            seen.append(x)
        return self.layer5(torch.cat(seen, dim=1)).transpose(1, 2)


class OfficialPatchEncoder(nn.Module):
    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        wide = 4 * width
        self.first_conv = nn.Sequential(
            nn.Conv1d(3, width, 1), nn.BatchNorm1d(width), nn.ReLU(), nn.Conv1d(width, 2 * width, 1)
        )
        self.second_conv = nn.Sequential(
            nn.Conv1d(wide, wide, 1), nn.BatchNorm1d(wide), nn.ReLU(), nn.Conv1d(wide, dim, 1)
        )

    def forward(self, groups: Tensor) -> Tensor:
        local = self.first_conv(groups.flatten(0, 1).transpose(1, 2))
        both = torch.cat([local.max(dim=2, keepdim=True).values.expand_as(local), local], dim=1)
        return self.second_conv(both).max(dim=2).values.unflatten(0, groups.shape[:2])


class OfficialFolding(nn.Module):
    def __init__(self, dim: int, group_size: int, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            *(nn.Linear(dim, 2 * width), nn.ReLU(), nn.Linear(2 * width, 2 * width), nn.ReLU()),
            nn.Linear(2 * width, 3 * group_size // 4),
        )
        self.final_conv = nn.Sequential(
            *(nn.Conv1d(dim + 5, width, 1), nn.BatchNorm1d(width), nn.ReLU()),
            *(nn.Conv1d(width, width, 1), nn.BatchNorm1d(width), nn.ReLU(), nn.Conv1d(width, 3, 1)),
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        batch, count, _ = features.shape
        features = features.flatten(0, 1)
        coarse = self.mlp(features).reshape(batch * count, -1, 3)
        around = coarse.repeat_interleave(4, dim=1).transpose(1, 2)
        low, high = torch.linspace(-0.05, 0.05, 2)  # float32, as the official grid
        grid = torch.stack([torch.stack([low, high, low, high]), torch.stack([low, low, high, high])]).double()
        grid = grid.repeat(1, coarse.shape[1]).expand(batch * count, -1, -1)
        rows = torch.cat([features[:, :, None].expand(-1, -1, grid.shape[2]), grid, around], dim=1)
        fine = (self.final_conv(rows) + around).transpose(1, 2)
        return coarse.unflatten(0, (batch, count)), fine.unflatten(0, (batch, count))


class OfficialVAE(nn.Module):
    """The official forward and loss for one temperature and one weight of the KL divergence."""

    def __init__(self) -> None:
        super().__init__()
        s = SMALL
        self.codebook = nn.Parameter(torch.empty(s["num_tokens"], s["tokens_dim"]))
        self.encoder = OfficialPatchEncoder(s["encoder_dim"], s["encoder_width"])
        self.dgcnn_1 = OfficialDGCNN(s["encoder_dim"], s["num_tokens"], s["graph_width"])
        self.dgcnn_2 = OfficialDGCNN(s["tokens_dim"], s["decoder_dim"], s["graph_width"])
        self.decoder = OfficialFolding(s["decoder_dim"], s["group_size"], s["decoder_width"])

    def forward(self, points: Tensor, temperature: float, kl_weight: float) -> dict[str, Tensor]:
        groups, centers = ops.group(points, SMALL["num_groups"], SMALL["group_size"])
        logits = self.dgcnn_1(self.encoder(groups), centers)
        if self.training:
            words = F.gumbel_softmax(logits, tau=temperature, dim=2, hard=False)
        else:
            words = (logits == logits.max(dim=2, keepdim=True).values).double()
        sampled = torch.einsum("bgn,nc->bgc", words, self.codebook)
        coarse, fine = self.decoder(self.dgcnn_2(sampled, centers))
        reconstruction = _cdl1(coarse, groups) + _cdl1(fine, groups)
        log_q = logits.softmax(dim=-1).mean(dim=1).log()
        log_uniform = torch.full_like(log_q, 1 / SMALL["num_tokens"]).log()
        kl = F.kl_div(log_q, log_uniform, reduction="batchmean", log_target=True)
        terms = {"loss": reconstruction + kl_weight * kl, "reconstruction": reconstruction, "kl": kl}
        return terms | {"coarse": coarse, "fine": fine, "logits": logits, "centers": centers}


def _cdl1(x: Tensor, y: Tensor) -> Tensor:
    squared = (x.flatten(0, 1)[:, :, None] - y.flatten(0, 1)[:, None]).square().sum(-1)
    return (squared.min(2).values.sqrt().mean() + squared.min(1).values.sqrt().mean()) / 2


@pytest.mark.parametrize("training", [True, False])
def test_it_is_the_official_one_forward_and_backward(training: bool, clouds: Clouds) -> None:
    ours, official, points = build(), OfficialVAE().double(), clouds(3, 3, 40).double()
    official.load_state_dict(ours.state_dict(), strict=True)
    step = 60_000
    torch.manual_seed(5)
    output = ours.train(training)(points, step)
    loss, parts = output.loss, output.terms | output.outputs
    torch.manual_seed(5)
    expected = official.train(training)(points, ours.temperature_at(step), ours.kl_weight_at(step))
    assert ours.kl_weight_at(step) > 0
    loss.backward()
    expected["loss"].backward()
    assert set(parts) == set(expected) - {"loss"}
    for name, value in ({"loss": loss} | parts).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    others = dict(official.named_parameters()) | dict(official.named_buffers())
    for name, parameter in ours.named_parameters():
        gradient, other = parameter.grad, others[name].grad
        assert (gradient is None) == (other is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, other, rtol=0, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    state = ours.state_dict()
    for name in (key for key in state if "running" in key):
        torch.testing.assert_close(state[name], others[name], rtol=0, atol=1e-10)


def test_split_edge_convolutions_are_the_official_ones_on_features_too() -> None:
    torch.manual_seed(0)
    ours, official = DGCNN(5, 8, 6).double(), OfficialDGCNN(5, 8, 6).double()
    official.load_state_dict(ours.state_dict(), strict=True)
    centers, weight = torch.randn(3, 7, 3).double(), torch.randn(3, 7, 8).double()
    centers[:, 5] = centers[:, 2]  # a tie
    results = []
    for network, graph in ((ours, neighbour_graph(centers)), (official, centers)):
        x = torch.ones(3, 7, 5).double().cumsum(1).sin().requires_grad_()
        output = network(x, graph)
        (output * weight).sum().backward()
        results.append([output, x.grad, *(p.grad for p in network.parameters())])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-10)


def test_words_are_the_likeliest_and_decode_to_what_forward_returns(clouds: Clouds) -> None:
    model, points = build().eval(), clouds(0, 2, 40).double()
    groups, centers = ops.group(points, 8, 8)
    words, parts = model.tokenize(groups, centers), model(points).outputs
    assert words.dtype == torch.int64
    assert torch.equal(words, parts["logits"].argmax(-1))
    assert torch.equal(model.encode(groups, centers), parts["logits"])
    coarse, fine = model.decode(F.one_hot(words, 12).double(), centers)
    assert coarse.shape == (2, 8, 2, 3)
    assert torch.equal(coarse, parts["coarse"])
    assert torch.equal(fine, parts["fine"])
    assert fine.shape == groups.shape


def test_evaluation_is_deterministic_and_training_is_not(clouds: Clouds) -> None:
    model, points = build(), clouds(0, 2, 40).double()
    assert not torch.equal(model(points).loss, model(points).loss)
    model.eval()
    first = model(points, 0).loss
    assert torch.equal(first, model(points).loss)
    assert not torch.equal(first, model(points, 60_000).loss), "the KL divergence counts at later steps"


def test_every_parameter_is_trained(clouds: Clouds) -> None:
    model = build()
    model(clouds(0, 4, 40).double(), 60_000).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_published_schedules() -> None:
    model = DiscreteVAE(**SMALL)
    temperatures = [model.temperature_at(step) for step in (0, 50_000, 100_000, 10**9)]
    assert temperatures == pytest.approx([1, (1 + 0.0625) / 2, 0.0625, 0.0625], abs=1e-12)
    assert model.temperature_at(25_000) == pytest.approx(0.0625 + 0.9375 * (1 + 0.5**0.5) / 2, abs=1e-12)
    weights = [model.kl_weight_at(step) for step in (0, 10_000, 60_000, 110_000, 10**9)]
    assert weights == pytest.approx([0, 0, 0.05, 0.1, 0.1], abs=1e-12)
    other = DiscreteVAE(**SMALL, temperature=(2.0, 1.0), temperature_steps=10, kl_weight=1.0, kl_start=4, kl_steps=2)
    assert [other.temperature_at(5), other.kl_weight_at(4), other.kl_weight_at(5)] == pytest.approx([1.5, 0, 0.5])


def test_words_that_nothing_uses_leave_the_loss_finite(clouds: Clouds) -> None:
    model = DiscreteVAE(**SMALL, kl_start=0, kl_steps=1)
    model.dgcnn_1.layer5[1].weight.data.mul_(1e4)  # type: ignore[operator,union-attr]
    output = model(clouds(0, 2, 40), 1)
    loss, parts = output.loss, output.terms | output.outputs
    loss.backward()
    assert parts["logits"].softmax(-1).mean(1).min() == 0, "in float32 some probabilities underflow"
    assert parts["kl"] > 100
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_bf16_autocast_stays_close_and_names_words_as_without_it(clouds: Clouds) -> None:
    torch.manual_seed(0)
    model, points = DiscreteVAE(**SMALL), clouds(0, 4, 40)
    groups, centers = ops.group(points, 8, 8)
    plain, words = model(points).outputs["logits"], model.eval().tokenize(groups, centers)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.tokenize(groups, centers), words)
        output = model.train()(points)
        loss, parts = output.loss, output.terms | output.outputs
    loss.backward()
    assert loss.dtype == parts["logits"].dtype == parts["fine"].dtype == torch.float32
    torch.testing.assert_close(parts["logits"], plain, rtol=0, atol=0.2)
    assert not torch.equal(parts["logits"], plain)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group_size": 30}, r"group_size=30.* 4.* 28"),
        ({"group_size": 0}, r"group_size=0.* 4"),
        ({"num_tokens": 9}, r"num_tokens=9.* 4.* 8"),
        ({"decoder_dim": 6}, r"decoder_dim=6.* 4"),
        ({"graph_width": 5}, r"graph_width=5.* 2.* 4"),
        ({"num_groups": 3}, r"num_groups=3.* 4"),
        ({"tokens_dim": 0}, r"tokens_dim=0"),
        ({"kl_steps": 0}, r"kl_steps=0"),
        ({"temperature": (1.0, 0.0)}, r"temperature=\(1\.0, 0\.0\)"),
        ({"kl_weight": -1.0}, r"kl_weight=-1\.0"),
        ({"temperature": [1.0]}, r"dvae\.temperature.*"),
    ],
    ids=str,
)
def test_impossible_sizes_and_schedules_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DiscreteVAE(**check_arguments("dvae", DiscreteVAE, arguments))


def test_it_has_no_ffn_to_make_experts_of() -> None:
    with pytest.raises(ValueError, match="DiscreteVAE"):
        upcycle(DiscreteVAE(**SMALL))
