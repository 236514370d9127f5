import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pc_ewa.ewa import ExpertFFN, ExpertLinear, routed_experts
from pc_ewa.models.transformer import Mlp

Mixture = Callable[..., ExpertFFN]
Deal = Callable[..., Tensor]


class DropoutMlp(nn.Sequential):
    def __init__(self, rate: float) -> None:
        super().__init__(nn.Linear(5, 10), nn.GELU(), nn.Dropout(rate), nn.Linear(10, 5))


@pytest.mark.parametrize(
    ("ffn", "arguments", "message"),
    [
        (Mlp(4, 8), {"num_experts": 1}, r"num_experts=1; a mixture needs at least 2"),
        (Mlp(4, 8), {"init": "random"}, r"init='random'; choose 'copy' or 'independent'"),
        (Mlp(4, 8), {"partition": "token"}, r"partition='token'; choose 'batch' or 'sample'"),
        (nn.GELU(), {}, r"^GELU cannot become experts: it has no parameters"),
        (
            nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, affine=False), nn.Linear(8, 4)),
            {},
            r"its 1 is a BatchNorm1d",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value)[:30],
)
def test_what_cannot_become_experts_is_refused(ffn: nn.Module, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpertFFN(ffn, **arguments)


def test_copies_draw_no_random_number() -> None:
    ffn = Mlp(4, 8)
    state = torch.get_rng_state()
    ExpertFFN(ffn, 3).fuse()
    assert torch.equal(torch.get_rng_state(), state)


def test_independent_experts_are_shuffles_of_the_hosts_weights() -> None:
    torch.manual_seed(0)
    ffn = Mlp(5, 10)
    layer = ExpertFFN(ffn, 4, init="independent")
    for name, parameter in ffn.named_parameters():
        stack = layer.experts.get_parameter(name)
        assert torch.equal(stack[0], parameter)
        for i in range(1, 4):
            assert torch.equal(stack[i].flatten().sort().values, parameter.flatten().sort().values)
            assert all(not torch.equal(stack[i], stack[j]) for j in range(i))


def test_mixture_shares_no_memory_with_its_ffn() -> None:
    ffn = Mlp(5, 10)
    before = copy.deepcopy(ffn.state_dict())
    layer = ExpertFFN(ffn, 2)
    fused = layer.fuse()
    with torch.no_grad():
        for parameter in (*layer.parameters(), *fused.parameters()):
            parameter.fill_(7)
    assert all(torch.equal(ffn.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize("partition", ["batch", "sample"])
@pytest.mark.parametrize("shape", [(5,), (7, 5), (2, 7, 5), (2, 3, 7, 5), (0, 5), (2, 0, 5), (0, 7, 5)])
def test_any_number_of_axes_and_of_tokens(mixture: Mixture, partition: str, shape: tuple[int, ...]) -> None:
    layer = mixture(3, partition)
    x = torch.randn(shape).double().requires_grad_()
    for training in (True, False):
        layer.train(training)
        output = layer(x)
        assert output.shape == x.shape
        output.sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in (x, *layer.parameters()))


def test_ffn_without_biases() -> None:
    torch.manual_seed(0)
    ffn = nn.Sequential(nn.Linear(5, 10, bias=False), nn.ReLU(), nn.Linear(10, 5, bias=False)).double()
    layer, x = ExpertFFN(ffn, 3), torch.randn(2, 7, 5).double()
    torch.testing.assert_close(layer(x), ffn(x))
    torch.testing.assert_close(layer.eval()(x), ffn(x))
    assert repr(layer.fuse()) == repr(ffn.eval())


def test_tokens_in_any_memory_layout(mixture: Mixture) -> None:
    layer, x = mixture(3), torch.randn(5, 7, 2).double()
    outputs = []
    for tokens in (x.permute(2, 1, 0), x.permute(2, 1, 0).contiguous()):
        torch.manual_seed(0)
        outputs.append(layer(tokens))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-14)


def test_sample_partition_deals_every_sample_apart_in_near_equal_parts(deal: Deal) -> None:
    torch.manual_seed(0)
    rows = deal(3, 20, 7, partition="sample")
    assert all(sorted(row.bincount(minlength=3).tolist()) == [2, 2, 3] for row in rows)
    assert len({tuple(row) for row in rows.tolist()}) > 1, "each sample has its own dealing"
    windows = deal(3, 4, 5, 7, partition="sample").flatten(0, 1)
    assert all(sorted(row.bincount(minlength=3).tolist()) == [2, 2, 3] for row in windows)


def test_batch_partition_deals_all_samples_together(deal: Deal) -> None:
    torch.manual_seed(0)
    rows = deal(2, 10, 6)
    assert rows.flatten().bincount().tolist() == [30, 30]
    assert any(row.sum() != 3 for row in rows)


def test_routed_experts_send_each_token_through_one_expert_with_dropout_off() -> None:
    torch.manual_seed(0)
    ffn = DropoutMlp(0.9).double().eval()
    layer, x = ExpertFFN(ffn, 3), torch.randn(4, 7, 5).double()
    with routed_experts(layer):
        torch.testing.assert_close(layer(x), ffn(x))
        with torch.no_grad():
            for stack in layer.parameters():
                stack += torch.randn_like(stack)
        assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer(x), layer.fuse()(x))


def test_routed_experts_restore_every_mode_even_after_an_error(mixture: Mixture) -> None:
    model = nn.Sequential(mixture(2).eval(), mixture(3), nn.Dropout(), nn.BatchNorm1d(5).eval())
    before = [module.training for module in model.modules()]

    def evaluate() -> None:
        with routed_experts(model):
            assert all(m.training for m in model.modules() if isinstance(m, ExpertFFN | ExpertLinear))
            assert [m.training for m in model] == [True, True, True, False]
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        evaluate()
    assert [module.training for module in model.modules()] == before


def test_dropout_in_the_ffn_still_drops_in_training() -> None:
    torch.manual_seed(0)
    layer = ExpertFFN(DropoutMlp(0.5), 2)
    with torch.no_grad():
        layer.experts[0].weight.zero_()  # type: ignore[index]
        layer.experts[0].bias.fill_(1)  # type: ignore[index]
        layer.experts[3].weight.fill_(1)  # type: ignore[index]
        layer.experts[3].bias.zero_()  # type: ignore[index]
    kept = layer(torch.zeros(400, 5))[:, 0] / (2 * nn.functional.gelu(torch.tensor(1.0)))
    torch.testing.assert_close(kept, kept.round())  # how many of 10 hidden units are left
    assert abs(kept.mean().item() - 5) < 4 * (10 / 4 / 400) ** 0.5


def test_training_mode_is_that_of_the_ffn() -> None:
    layer = ExpertFFN(DropoutMlp(0.5).eval(), 2)
    assert not any(module.training for module in layer.modules())
    assert not any(module.training for module in layer.fuse().modules())
    assert all(module.training for module in layer.train().fuse().modules())


def test_frozen_parameters_stay_frozen() -> None:
    ffn = Mlp(5, 10)
    ffn.fc1.requires_grad_(False)
    layer = ExpertFFN(ffn, 3)
    wanted = {"fc1.weight": False, "fc1.bias": False, "fc2.weight": True, "fc2.bias": True}
    assert {name: p.requires_grad for name, p in layer.experts.named_parameters()} == wanted
    assert {name: p.requires_grad for name, p in layer.fuse().named_parameters()} == wanted


def test_bf16_autocast_runs_forward_and_backward_in_both_modes() -> None:
    torch.manual_seed(0)
    ffn = Mlp(16, 32)
    layer, x = ExpertFFN(ffn, 3), torch.randn(2, 7, 16)
    expected = ffn(x)
    for training in (True, False):
        layer.train(training).zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(x)
        assert output.dtype == torch.bfloat16
        # Two matrix products with 8 bits of mantissa each.
        torch.testing.assert_close(output.float(), expected, rtol=0, atol=2**-7 * expected.abs().max().item() * 2)
        output.float().square().sum().backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters())


def test_printed_layer_says_what_it_is(mixture: Mixture) -> None:
    text = repr(mixture(3, "sample"))
    assert "num_experts=3, partition='sample'" in text
    assert "3 experts, in_features=5, out_features=10" in text
