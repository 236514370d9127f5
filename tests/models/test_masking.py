"""Masks: how many patches they hide, which ones, and that every sample has its own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pc_ewa.models.masking import block_mask, fixed_in_evaluation, random_mask


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 5), st.integers(1, 70), st.floats(0, 1), st.integers(0, 2**31))
def test_int_of_ratio_times_patches_are_hidden_in_each_sample(batch: int, count: int, ratio: float, seed: int) -> None:
    centers = torch.randn(batch, count, 3, generator=torch.Generator().manual_seed(seed))
    for draw in (random_mask, block_mask):
        mask = draw(centers, ratio, torch.Generator().manual_seed(seed))
        assert mask.dtype == torch.bool
        assert mask.sum(1).tolist() == [int(ratio * count)] * batch


def test_the_official_ratio_hides_38_of_64() -> None:
    assert random_mask(torch.randn(2, 64, 3), 0.6).sum(1).tolist() == [38, 38]


def test_every_sample_has_its_own_mask() -> None:
    torch.manual_seed(0)
    centers = torch.randn(1, 32, 3).expand(20, -1, -1)
    for draw in (random_mask, block_mask):
        assert len(draw(centers, 0.5).unique(dim=0)) > 10


def test_random_masks_hide_every_patch_equally_often() -> None:
    torch.manual_seed(0)
    shares = random_mask(torch.zeros(4000, 10, 3), 0.3).float().mean(0)
    assert (shares - 0.3).abs().max() < 4 * (0.3 * 0.7 / 4000) ** 0.5


def test_a_block_is_a_patch_and_those_nearest_to_it() -> None:
    torch.manual_seed(0)
    centers = torch.randn(50, 16, 3)
    mask = block_mask(centers, 0.4)
    for points, hidden in zip(centers, mask, strict=True):
        distances = (points[:, None] - points[None]).norm(dim=-1)
        nearest = [set(row.argsort()[:6].tolist()) for row in distances]
        assert set(hidden.nonzero().flatten().tolist()) in nearest


def test_blocks_of_a_ratio_for_each_sample() -> None:
    ratio = torch.tensor([0.0, 0.25, 0.45, 1.0], dtype=torch.float64)
    assert block_mask(torch.randn(4, 64, 3), ratio).sum(1).tolist() == [0, 16, 28, 64]


@pytest.mark.parametrize("draw", [random_mask, block_mask])
def test_masks_of_equal_centers_still_hide_the_right_number(draw) -> None:
    assert draw(torch.zeros(3, 8, 3), 0.5).sum(1).tolist() == [4, 4, 4]


def test_draws_are_fixed_in_evaluation_only() -> None:
    model, centers = nn.Identity(), torch.randn(2, 32, 3)
    torch.manual_seed(0)
    training = [random_mask(centers, 0.5, fixed_in_evaluation(model, centers.device)) for _ in range(2)]
    model.eval()
    before = torch.get_rng_state()
    evaluation = [random_mask(centers, 0.5, fixed_in_evaluation(model, centers.device)) for _ in range(2)]
    assert not torch.equal(*training)
    assert torch.equal(*evaluation)
    assert torch.equal(before, torch.get_rng_state()), "evaluation leaves torch's own numbers alone"
