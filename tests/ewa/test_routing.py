import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pc_ewa.ewa import combine, dispatch, uniform_partition

laws = settings(deadline=None, max_examples=60)


@laws
@given(st.integers(1, 4), st.integers(0, 20), st.integers(2, 7), st.integers(0, 2**31))
def test_partition_deals_each_token_once_in_near_equal_groups(rows: int, tokens: int, experts: int, seed: int) -> None:
    torch.manual_seed(seed)
    dealt = uniform_partition(rows, tokens, experts)
    assert dealt.tokens.shape == (rows, experts, -(-tokens // experts))
    for groups, slots in zip(dealt.tokens, dealt.slots, strict=True):
        assert sorted(groups[groups < tokens].tolist()) == list(range(tokens))
        sizes = (groups < tokens).sum(1)
        assert sizes.max() - sizes.min() <= 1
        assert torch.equal(groups.flatten()[slots], torch.arange(tokens)), "slots must lead back to the tokens"


@laws
@given(st.integers(0, 4), st.integers(0, 12), st.integers(2, 7), st.integers(0, 2**31))
def test_combine_undoes_dispatch(rows: int, tokens: int, experts: int, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(rows, tokens, 3)
    dealt = uniform_partition(rows, tokens, experts)
    assert torch.equal(combine(dispatch(x, dealt), dealt), x)


@pytest.mark.parametrize("tokens", [4, 7, 2])
def test_combine_and_dispatch_have_exact_gradients(tokens: int) -> None:
    torch.manual_seed(0)
    dealt = uniform_partition(2, tokens, 3)
    x = torch.randn(2, tokens, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: combine(dispatch(x, dealt).square(), dealt), x)


def test_each_row_is_dealt_by_itself() -> None:
    torch.manual_seed(0)
    assert len({tuple(row) for row in uniform_partition(6, 12, 3).slots.tolist()}) == 6
