"""The golden tests 5 and 6 of experts weights averaging: dealing tokens to experts."""

from collections import Counter
from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from golden import close, experts_2_to_6, laws, sizes
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pc_ewa.ewa import expert_layers, upcycle
from pc_ewa.models.transformer import Mlp

scopes = st.sampled_from(["batch", "sample"])
Build = Callable[..., nn.Module]
Deal = Callable[..., Tensor]


# 5


@laws
@given(sizes, experts_2_to_6, scopes, st.integers(0, 2**31))
def test_golden_5_any_number_of_tokens_is_exact_forward_and_gradient(
    mixture: Build, size: tuple[int, int], num_experts: int, scope: str, seed: int
) -> None:
    """Against every expert on every token, of which each token keeps the one that it was dealt to."""
    layer = mixture(num_experts, scope, seed=seed)
    x = torch.randn(*size, 5).double().requires_grad_()
    weight = torch.randn(*size, 5).double()
    actual = layer(x)
    own = {name: stack.detach().clone().requires_grad_() for name, stack in layer.experts.named_parameters()}
    hidden = torch.einsum("btc,nhc->nbth", x, own["fc1.weight"]) + own["fc1.bias"][:, None, None]
    hidden = nn.functional.gelu(hidden)
    every = torch.einsum("nbth,nch->nbtc", hidden, own["fc2.weight"]) + own["fc2.bias"][:, None, None]
    matches = (every - actual).abs().amax(-1) < 1e-12
    assert (matches.sum(0) == 1).all(), "every token must come from exactly one expert"
    counts = matches.sum((1, 2)) if scope == "batch" else matches.sum(2)
    assert (counts.amax(0) - counts.amin(0)).max() <= 1, "the groups must be of equal size"
    expected = (every * matches[..., None]).sum(0)
    (expected_x,) = torch.autograd.grad((expected * weight).sum(), x, retain_graph=True)
    (expected * weight).sum().backward(inputs=list(own.values()))
    (actual * weight).sum().backward()
    close(x.grad, expected_x)
    for name, reference in own.items():
        close(layer.experts.get_parameter(name).grad, reference.grad)


def test_golden_5_fewer_tokens_than_experts(mixture: Build) -> None:
    layer = mixture(6)
    layer(torch.randn(1, 2, 5).double()).sum().backward()
    gradient = layer.experts.fc2.bias.grad
    assert sorted(gradient[:, 0].tolist()) == [0, 0, 0, 0, 1, 1]


# 6


def test_golden_6_every_call_and_every_layer_deals_anew(transformer: Build) -> None:
    model = upcycle(transformer(), 2, "all")
    drawn: list[Tensor] = []
    for layer in expert_layers(model).values():
        layer.experts.fc2.weight.data.zero_()  # type: ignore[union-attr]
        layer.experts.fc2.bias.data.copy_(torch.arange(2.0)[:, None])  # type: ignore[union-attr]
        layer.register_forward_hook(lambda _m, _i, out: drawn.append(out[..., 0].detach()))
    for _ in range(2):
        model(torch.zeros(4, 16, 3).double())
    assert len(drawn) == 8
    assert all(not torch.equal(a, b) for a, b in combinations(drawn, 2))


def test_golden_6_dealings_follow_torchs_seed(deal: Deal) -> None:
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(deal(4, 5, 13, anew=True))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@laws
@given(sizes, experts_2_to_6)
def test_golden_6_groups_are_of_equal_size(deal: Deal, size: tuple[int, int], num_experts: int) -> None:
    counts = deal(num_experts, *size).flatten().bincount(minlength=num_experts)
    assert counts.max() - counts.min() <= 1


def chi_square(observed: list[int], outcomes: int) -> float:
    """Pearson's statistic against equal chances of `outcomes` outcomes."""
    expected = sum(observed) / outcomes
    unseen = outcomes - len(observed)
    return sum((count - expected) ** 2 for count in observed) / expected + unseen * expected


@pytest.mark.parametrize(
    ("num_experts", "tokens", "dealings", "bound"),
    # Equally likely dealings, and the 1 - 1e-4 quantile of chi-square with one degree of freedom less.
    [(2, 4, 6, 25.74), (2, 3, 6, 25.74), (3, 3, 6, 25.74), (3, 4, 36, 74.93), (4, 2, 12, 37.37)],
)
def test_golden_6_every_dealing_is_equally_likely(
    deal: Deal, num_experts: int, tokens: int, dealings: int, bound: float
) -> None:
    torch.manual_seed(0)
    # One sample a row: a call of 500 rows makes 500 independent dealings.
    rows = torch.cat([deal(num_experts, 500, tokens, partition="sample") for _ in range(8)])
    seen = Counter(tuple(row) for row in rows.tolist())
    assert len(seen) == dealings
    assert chi_square(list(seen.values()), dealings) < bound


def test_golden_6_batch_dealing_has_no_memory_of_the_samples(deal: Deal) -> None:
    """Tokens of one sample meet in one expert as often as those of different samples: 3 of 11."""
    torch.manual_seed(0)
    draws = torch.stack([deal(3, 2, 6).flatten() for _ in range(2000)])
    for a, b in [(0, 1), (0, 5), (0, 6), (5, 11)]:
        together = (draws[:, a] == draws[:, b]).double().mean().item()
        assert abs(together - 3 / 11) < 4 * (3 / 11 * 8 / 11 / 2000) ** 0.5


def test_golden_6_evaluation_is_deterministic_and_runs_the_merged_ffn(mixture: Build) -> None:
    layer = mixture(4).eval()
    x = torch.randn(2, 7, 5).double()
    before = torch.get_rng_state()
    output = layer(x)
    assert torch.equal(layer(x), output)
    assert torch.equal(torch.get_rng_state(), before)
    close(output, layer.fuse()(x), atol=0)
    mean = Mlp(5, 10).double()
    mean.load_state_dict({name: stack.detach().mean(0) for name, stack in layer.experts.named_parameters()})
    close(output, mean(x))
