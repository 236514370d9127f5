"""Every kind of FFN as experts: gated ones, norms and scales inside, 1x1 convolutions, Conv1D, parts side by side."""

import copy
import logging
from collections.abc import Callable

import pytest
import torch
from ewa_hosts import SIDE_BY_SIDE, bart, build_beside
from ffn_kinds import KINDS, Buffered, C, H, Packed, build, spread_out, upcycled
from torch import Tensor, nn

from pc_ewa.ewa import (
    ExpertAverager,
    ExpertFFN,
    Gate,
    balance_loss,
    dense_state_dict,
    expert_layers,
    merge_experts,
    routed_experts,
    upcycle,
)

Build = Callable[[], nn.Module]


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_found_by_structure_there_and_back(kind: str) -> None:
    model, x = build(kind)
    keys, layout, expected = copy.deepcopy(model.state_dict()), repr(model), model(x)
    assert list(expert_layers(upcycle(model, 3, "all"))) == ["0.mlp", "1.mlp"]
    close(model(x), expected)
    close(model.eval()(x), expected)
    assert list(dense_state_dict(model)) == list(keys)
    merge_experts(model.train())
    assert repr(model) == layout
    assert list(model.state_dict()) == list(keys)
    assert all(torch.equal(value, keys[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("partition", ["batch", "sample"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_token_goes_through_one_expert(kind: str, partition: str) -> None:
    model, x = upcycled(kind, partition=partition)
    layer = spread_out(model)[0].mlp
    axis = layer.form.axis
    assert axis == (1 if "convolutions" in kind else -1)
    tokens = x.movedim(axis, -1).reshape(-1, C)
    singles = []
    for number in range(3):
        # The expert alone, as the plain FFN: all three stacks hold its weights.
        alone = copy.deepcopy(layer)
        for stack in alone.parameters():
            stack.data = stack.data[number].expand_as(stack).clone()
        singles.append(alone.fuse()(x).movedim(axis, -1).reshape(-1, C))
    output = layer(x).movedim(axis, -1).reshape(-1, C)
    errors = torch.stack([(output - single).abs().amax(1) for single in singles])
    assert (errors.amin(0) < 1e-12).all()
    counts = errors.argmin(0).bincount(minlength=3)
    assert counts.max() - counts.min() <= (1 if partition == "batch" else 2 if len(x.shape) == 3 or axis == 1 else 6)
    assert counts.sum() == len(tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_is_the_merged_ffn_and_gradients_reach_every_expert(kind: str) -> None:
    model, x = upcycled(kind)
    spread_out(model)
    model(x).square().sum().backward()
    stacks = [p for layer in expert_layers(model).values() for p in layer.parameters()]
    assert all(p.grad is not None and p.grad.flatten(1).norm(dim=1).gt(0).all() for p in stacks)
    output = model.eval()(x)
    with routed_experts(model):
        assert not torch.equal(model(x), output)
    assert torch.equal(model(x), output)
    assert torch.equal(merge_experts(model)(x), output)


@pytest.mark.parametrize("kind", KINDS)
def test_identical_experts_have_the_gradient_of_the_one_ffn_in_sum(kind: str) -> None:
    """Golden test 1: with full sharing and the rate times N, training is that of the dense model."""
    dense, x = build(kind)
    model = upcycle(copy.deepcopy(dense), 3, "all", ffn="*.mlp")
    averager = ExpertAverager(model, 2 / 3, "constant")
    pair = [
        (dense, torch.optim.SGD(dense.parameters(), 0.01, momentum=0.9)),
        (model, torch.optim.SGD(model.parameters(), 0.03, momentum=0.9)),
    ]
    for _ in range(3):
        for each, optimizer in pair:
            optimizer.zero_grad()
            each(x).square().mean().backward()
            optimizer.step()
        averager.step()
    merged = dense_state_dict(model)
    for name, value in dense.state_dict().items():
        close(merged[name], value)


@pytest.mark.parametrize("kind", KINDS)
def test_gated_mixtures_take_every_kind(kind: str) -> None:
    model, x = upcycled(kind, gate=Gate(capacity_factor=3.0))
    (model(x).square().sum() + balance_loss(model)).backward()
    assert all(p.grad is not None for p in model.parameters())
    torch.testing.assert_close(model.eval()(x), model.train()(x), rtol=0, atol=1e-12)  # no token finds no room


@pytest.mark.parametrize("kind", KINDS)
def test_experts_of_their_own_start_as_shuffles(kind: str) -> None:
    model, _ = upcycled(kind, init="independent")
    for stack in expert_layers(model)["0.mlp"].parameters():
        assert torch.equal(stack.flatten(1).sort(1).values[1], stack[0].flatten().sort().values)


def test_only_ffns_of_linear_layers_take_the_batched_product() -> None:
    batched = {kind for kind in KINDS if upcycled(kind)[0][0].mlp.batched}
    assert batched == {"packed", "llama"}


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("kind", ["scaled", "convolutions", "flattens"])
def test_fewer_tokens_than_experts(kind: str, count: int) -> None:
    model, x = upcycled(kind)
    few = x.movedim(model[0].mlp.form.axis, -1).reshape(-1, C)[:count]
    few = few.view(count, C, 1, 1) if kind == "convolutions" else few.view(1, count, C)
    if count or kind != "flattens":
        close(model(few), model.eval()(few))


def test_bf16_autocast_and_dropout() -> None:
    torch.manual_seed(0)
    ffn = nn.Sequential(nn.Linear(C, H), nn.LayerNorm(H), nn.Dropout(0.5), nn.Linear(H, C))
    layer, x = ExpertFFN(ffn, 3), torch.randn(2, 7, C)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
    output.float().square().sum().backward()
    assert output.dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer.eval()(x))


# Parts side by side


@pytest.mark.parametrize("host", SIDE_BY_SIDE)
def test_parts_side_by_side_there_and_back(host: str) -> None:
    model, of = build_beside(host)
    name = SIDE_BY_SIDE[host][1]

    def run() -> Tensor:
        return of(model)

    keys, layout, expected = copy.deepcopy(model.state_dict()), repr(model), run()
    assert list(expert_layers(upcycle(model, 3, "all"))) == [f"layer.{name}"]
    close(run(), expected)
    spread_out(model)
    assert not torch.equal(run(), run())
    output = model.eval() and run()
    merge_experts(model)
    close(run(), output)
    model.load_state_dict(keys)
    assert repr(model.train()) == layout
    assert torch.equal(run(), expected)


def test_a_dropout_that_is_a_number_moves_into_the_experts_and_back() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"layer": bart(activation_dropout=0.5)})
    activation = model["layer"].activation_fn
    upcycle(model, 2, "all")
    assert model["layer"].activation_dropout == 0.0
    assert [m.p for m in model["layer"].fc1.modules() if isinstance(m, nn.Dropout)] == [0.5]
    merge_experts(model)
    assert model["layer"].activation_dropout == 0.5
    assert type(model["layer"].activation_fn) is type(activation)


# What cannot become experts, and why


class Depthwise(nn.Module):
    """PVT v2, SegFormer: a depthwise convolution between the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.dwconv, self.fc2 = nn.Linear(C, H), nn.Conv2d(H, H, 3, padding=1, groups=H), nn.Linear(H, C)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        return self.fc2(self.dwconv(self.fc1(x).mT.unflatten(2, (height, width))).flatten(2).mT)


class ResponseNorm(nn.Module):
    """ConvNeXt V2: each channel is divided by its norm over the map."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, H, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        norm = x.norm(dim=(2, 3), keepdim=True)
        return x + self.gamma * x * norm / norm.mean(1, keepdim=True)


class Counting(Buffered):
    """Writes down what it sees."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.offset += 1
        return super().forward(x)


class Adapter(nn.Module):
    """A LoRA layer of peft."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = layer
        self.lora_A = nn.Linear(layer.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


def quantised() -> nn.Module:
    ffn = nn.Sequential(nn.Linear(C, H), nn.GELU(), nn.Linear(H, C))
    ffn[0].weight = nn.Parameter(torch.ones(H, C, dtype=torch.int8), requires_grad=False)
    return ffn


def patched() -> nn.Module:
    """An FFN whose first layer got another forward, which calls the layer that it was made for."""
    ffn = nn.Sequential(nn.Linear(C, H), nn.GELU(), nn.Linear(H, C))
    before = ffn[0].forward
    ffn[0].forward = lambda x: 2 * before(x)
    return ffn


@pytest.mark.parametrize("place", ["0", "2", ""])
@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook"])
def test_hooks_inside_of_an_ffn_are_called(kind: str, place: str) -> None:
    torch.manual_seed(0)
    ffn, x = nn.Sequential(nn.Linear(C, H), nn.GELU(), nn.Linear(H, C)).double(), torch.randn(2, 6, C).double()
    double = {"forward_hook": lambda _, inputs, y: 2 * y, "forward_pre_hook": lambda _, inputs: (2 * inputs[0],)}
    getattr(ffn.get_submodule(place), f"register_{kind}")(double[kind])
    model = nn.ModuleDict({"mlp": ffn})
    expected = model["mlp"](x)
    upcycle(model, 2, "all", ffn="mlp")
    torch.testing.assert_close(model.train()["mlp"](x), expected)  # copies, so that the routes do not matter
    torch.testing.assert_close(model.eval()["mlp"](x), expected)
    torch.testing.assert_close(merge_experts(model)["mlp"](x), expected)


CANNOT: dict[str, tuple[Build, str]] = {
    "depthwise": (Depthwise, "its dwconv is a 3x3 depthwise convolution, which mixes neighbouring tokens"),
    "response norm": (
        lambda: nn.Sequential(nn.Conv2d(C, H, 1), nn.GELU(), ResponseNorm(), nn.Conv2d(H, C, 1)),
        "depends on other tokens",
    ),
    "batch norm": (
        lambda: nn.Sequential(nn.Conv2d(C, H, 1), nn.BatchNorm2d(H), nn.GELU(), nn.Conv2d(H, C, 1)),
        "its 1 is a BatchNorm2d, whose running statistics",
    ),
    "batch norm in layers": (
        lambda: nn.Sequential(nn.Sequential(nn.Linear(C, H), nn.BatchNorm1d(H)), nn.GELU(), nn.Linear(H, C)),
        r"its 0\.1 is a BatchNorm1d",
    ),
    "counts": (Counting, "in training it writes to its offset"),
    "adapter": (lambda: nn.Sequential(Adapter(nn.Linear(C, H)), nn.GELU(), nn.Linear(H, C)), r"its 0 is an adapter"),
    "forward of one object": (patched, r"its 0 has a forward that was put on this one object"),
    "integers": (quantised, r"its 0\.weight is not a floating-point number"),
}


@pytest.mark.parametrize("kind", CANNOT)
def test_what_cannot_become_experts_is_left_out_and_refused_by_name_with_the_reason(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, reason = CANNOT[kind]
    model = nn.ModuleDict({"a": Packed(), "b": nn.ModuleDict({"mlp": make()})})
    layout = repr(model)
    with pytest.raises(ValueError, match=rf"^b\.mlp \(\w+\) cannot become experts: .*{reason}") as caught:
        upcycle(model, 2, "all", ffn="*.mlp")
    assert "\n" not in str(caught.value)
    assert repr(model) == layout
    with pytest.raises(ValueError, match=reason):
        ExpertFFN(make())
    with caplog.at_level(logging.INFO, logger="pc_ewa"):
        assert list(expert_layers(upcycle(model, 2, "all"))) == ["a"]
    assert "b.mlp is not taken for an FFN: " in caplog.text


def test_a_stack_that_is_not_of_n_experts_is_refused_by_the_averager() -> None:
    """As peft's adapters on the stacks of a mixture."""
    model, _ = upcycled("packed")
    model[0].mlp.experts.lora = nn.Parameter(torch.zeros(2, C))
    with pytest.raises(ValueError, match=r"0\.mlp\.experts\.lora .*\(2, 8\), .*3 experts"):
        ExpertAverager(model, 0.3, "constant")
