"""Upcycling on foreign transformers; timm and torchvision classes by stand-ins of the same shape."""

import copy

import pytest
import torch
import torch.nn.functional as F
from ewa_hosts import HOSTS, FFNBlock, OlderLayer, Run, TimmMlp, TorchvisionMLPBlock, build_encoder, run
from ffn_kinds import spread_out
from torch import Tensor, nn

from pc_ewa.ewa import dense_state_dict, expert_layers, merge_experts, upcycle


def check_host(model: nn.Module, mixtures: list[str], run: Run) -> None:
    """Everything that must hold on a host whose layers drop nothing."""
    names, state = [name for name, _ in model.named_modules()], copy.deepcopy(model.state_dict())
    layout, expected = repr(model.train()), run(model)
    evaluated = run(model.eval())

    upcycle(model.train(), 3, "all")
    assert list(expert_layers(model)) == mixtures
    torch.testing.assert_close(run(model), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(run(model.eval()), evaluated, rtol=0, atol=1e-12)
    assert list(dense_state_dict(model)) == list(state)

    merge_experts(model.train())
    assert [name for name, _ in model.named_modules()] == names
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert repr(model) == layout
    assert torch.equal(run(model), expected)
    assert torch.equal(run(model.eval()), evaluated)

    spread_out(upcycle(model.train(), 2, "last-1"))
    output = run(model)
    assert not torch.equal(run(model), output), "dealt anew"
    output.square().sum().backward()
    assert all(p.grad is not None for layer in expert_layers(model).values() for p in layer.parameters())
    output = run(model.eval())
    assert (output - evaluated).abs().max() > 1e-3
    torch.testing.assert_close(run(merge_experts(model)), output, rtol=0, atol=1e-12)


@pytest.mark.parametrize("host", HOSTS)
def test_host_there_and_back(host: str) -> None:
    build, mixtures = HOSTS[host]
    torch.manual_seed(0)
    check_host(build().double(), mixtures, run)


@pytest.mark.parametrize("mlp", [TimmMlp, TorchvisionMLPBlock])
def test_dropout_inside_the_ffn_is_off_in_evaluation_and_kept_for_the_merged_model(mlp: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(FFNBlock(mlp(8, 16, 0.5))).double()
    layout, expected = repr(model), run(model.eval())
    upcycle(model.train(), 3, "all")
    assert not torch.equal(run(model), run(model))
    torch.testing.assert_close(run(model.eval()), expected, rtol=0, atol=1e-12)
    assert repr(merge_experts(model)) == layout


def test_older_transformers_keep_residual_and_dropout_where_they_were() -> None:
    torch.manual_seed(0)
    model = upcycle(nn.Sequential(OlderLayer(0.5)).double(), 2, "all")
    with torch.no_grad():
        model[0].output.dropout.p = 1.0
        x = torch.randn(2, 5, 8).double()
        assert torch.equal(model(x), x), "all that the FFN computes is dropped, and the residual is still added"
    merge_experts(model)
    assert model[0].intermediate.intermediate_act_fn is F.gelu


# torch.nn.TransformerEncoder

ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "function": F.gelu,
    "other function": F.silu,
    "module": nn.GELU(),
    "other module": nn.SiLU(),
}


def fast_paths(encoder: nn.TransformerEncoder) -> list[object]:
    return [encoder.use_nested_tensor, *(layer.activation_relu_or_gelu for layer in encoder.layers)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm_first", [False, True], ids=["norm last", "norm first"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["sequence first", "batch first"])
def test_torch_encoder_there_and_back(batch_first: bool, norm_first: bool, activation: str) -> None:
    encoder = build_encoder(ACTIVATIONS[activation], batch_first=batch_first, norm_first=norm_first)
    flags = fast_paths(encoder)
    held = [layer.activation for layer in encoder.layers]
    attributes = [set(module.__dict__) for module in encoder.modules()]
    check_host(encoder, ["layers.0.linear1", "layers.1.linear1", "layers.2.linear1"], run)
    assert fast_paths(encoder) == flags
    assert [set(module.__dict__) for module in encoder.modules()] == attributes
    for layer, activation_before in zip(encoder.layers, held, strict=True):
        assert type(layer.activation) is type(activation_before)
        if not isinstance(activation_before, nn.Module):
            assert layer.activation is activation_before


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layers", ["all", "every-2", [0], [1], [2]], ids=str)
@pytest.mark.parametrize("norm_first", [False, True], ids=["norm last", "norm first"])
def test_torch_encoder_fast_path_with_padding(norm_first: bool, layers: str | list[int]) -> None:
    """In evaluation torch fuses whole layers and packs padded batches: never around a mixture, and again after it."""
    encoder = build_encoder(batch_first=True, norm_first=norm_first).eval()
    x = torch.randn(3, 6, 8).double()
    padding = torch.arange(6)[None] >= torch.tensor([6, 4, 2])[:, None]
    flags = fast_paths(encoder)
    assert flags == ([False] if norm_first else [True]) + [2, 2, 2], "torch has changed what it fuses: see the test"
    with torch.no_grad():
        expected, padded = encoder(x), encoder(x, src_key_padding_mask=padding)
        upcycle(encoder, 3, layers)
        torch.testing.assert_close(encoder(x), expected, rtol=0, atol=1e-12)
        output = encoder(x, src_key_padding_mask=padding)
        torch.testing.assert_close(output[~padding], padded[~padding], rtol=0, atol=1e-12)
        spread_out(encoder)
        different = encoder(x, src_key_padding_mask=padding)
        assert (different - padded)[~padding].abs().max() > 1e-3
        twin = merge_experts(copy.deepcopy(encoder))
        torch.testing.assert_close(
            twin(x, src_key_padding_mask=padding)[~padding], different[~padding], rtol=0, atol=1e-12
        )
        assert fast_paths(twin) == flags
        merge_experts(encoder).load_state_dict(build_encoder(batch_first=True, norm_first=norm_first).state_dict())
        assert torch.equal(encoder(x, src_key_padding_mask=padding), padded)
    assert fast_paths(encoder) == flags


def test_torch_encoder_layers_without_a_mixture_keep_their_fast_path() -> None:
    encoder = upcycle(build_encoder(batch_first=True), 2, [1])
    assert [layer.activation_relu_or_gelu for layer in encoder.layers] == [2, 0, 2]


def test_torch_encoder_layer_alone_is_a_host() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True).double()
    check_host(layer, ["linear1"], run)


def test_torch_encoder_drops_hidden_units_and_outputs_at_its_rates() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.5, "relu", batch_first=True, norm_first=True)
    upcycle(layer, 2, layers="all")
    with torch.no_grad():
        for parameter in layer.self_attn.parameters():
            parameter.zero_()
        first, _, dropout, second = layer.linear1.experts
        first.weight.zero_(), first.bias.fill_(1), second.weight.fill_(1), second.bias.zero_()
    assert dropout.p == 0.5
    kept = layer(torch.zeros(400, 4, 8)).unique()
    torch.testing.assert_close(kept / 4, (kept / 4).round())  # hidden units are scaled by 2, and outputs again
    assert len(kept) > 8


@pytest.mark.parametrize("norm_first", [False, True], ids=["norm last", "norm first"])
def test_torch_decoder_layer_is_a_host_too(norm_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=norm_first).double()
    memory = torch.randn(2, 3, 8).double()
    x = torch.randn(2, 5, 8).double()
    check_host(layer, ["linear1"], lambda model: model(x, memory))


class MixedModel(nn.Module):
    """Different hosts in one model, deep inside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.ModuleDict({"first": FFNBlock(TimmMlp(8, 16, 0.0)), "second": OlderLayer(0.0)})
        self.encoder = build_encoder(batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(self.trunk["second"](self.trunk["first"](x)))


def test_different_hosts_in_one_model() -> None:
    mixtures = ["trunk.first.mlp", "trunk.second.intermediate", *(f"encoder.layers.{i}.linear1" for i in range(3))]
    check_host(MixedModel().double(), mixtures, run)


def test_trained_torch_encoder_has_no_gradient_left_out() -> None:
    encoder = upcycle(build_encoder("relu", dropout=0.1, batch_first=True), 3)
    run(encoder).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
