from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pc_ewa.data import UpAxis
from pc_ewa.data.transforms import (
    eval_index,
    jitter,
    normalize_unit_sphere,
    random_index,
    random_subset,
    rotate,
    rotate_freely,
    scale_and_translate,
    subsample_eval,
    subsample_train,
    train_index,
)

RANDOM: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "scale_and_translate": scale_and_translate,
    "rotate": lambda points, generator: rotate(points, generator, "z"),
    "rotate_freely": rotate_freely,
    "jitter": jitter,
    "random_subset": lambda points, generator: random_subset(points, 20, generator),
    "subsample_train": lambda points, generator: subsample_train(points, 20, generator),
}
laws = settings(deadline=None, max_examples=50)
shapes = st.tuples(st.integers(1, 5), st.integers(1, 40))
seeds = st.integers(0, 2**31)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clouds(batch: int = 4, count: int = 30, seed: int = 0) -> Tensor:
    return torch.randn(batch, count, 3, generator=seeded(seed))


def positions(subset: Tensor, points: Tensor) -> Tensor:
    """Where each point of a subset (B, M, 3) stands in its own cloud (B, N, 3); every point must be found."""
    same = (subset[:, :, None] == points[:, None]).all(-1)
    assert (same.sum(-1) == 1).all()
    return same.int().argmax(-1)


@pytest.mark.parametrize("name", RANDOM)
def test_every_sample_has_its_own_draw(name: str) -> None:
    same = clouds(1).expand(4, -1, -1)  # one memory for four samples: an in-place write would show in all
    before = same.clone()
    result = RANDOM[name](same, seeded())
    assert len({row.numpy().tobytes() for row in result}) == 4
    assert torch.equal(same, before)


@pytest.mark.parametrize("name", RANDOM)
def test_draws_follow_the_generator_and_nothing_else(name: str) -> None:
    points = clouds()
    torch.manual_seed(1)
    first = RANDOM[name](points, seeded(3))
    torch.manual_seed(2)
    assert torch.equal(first, RANDOM[name](points, seeded(3)))
    assert not torch.equal(first, RANDOM[name](points, seeded(4)))


@laws
@given(shapes, seeds, st.floats(-100, 100), st.floats(1e-3, 1e3))
def test_unit_sphere_is_centred_with_radius_one_wherever_the_cloud_was(
    shape: tuple[int, int], seed: int, offset: float, size: float
) -> None:
    points = clouds(*shape, seed) * size + offset
    result = normalize_unit_sphere(points)
    assert result.shape == points.shape
    assert result.dtype == torch.float32
    assert result.mean(1).abs().max() < 1e-5
    if shape[1] > 1:
        radii = result.norm(dim=2).amax(1)
        assert torch.allclose(radii, torch.ones_like(radii), atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6, 1e30, 1e-30])
def test_unit_sphere_of_one_repeated_point_is_zeros(value: float) -> None:
    assert torch.equal(normalize_unit_sphere(torch.full((2, 1000, 3), value)), torch.zeros(2, 1000, 3))


@laws
@given(shapes, seeds)
def test_scale_and_translate_stays_in_its_range_on_each_axis(shape: tuple[int, int], seed: int) -> None:
    points = clouds(*shape, seed).sign()  # corners of a cube: factor and move can be read off
    points[:, 0] = 1.0
    moved = scale_and_translate(torch.cat([points, -points], 1), seeded(seed))
    high, low = moved[:, 0], moved[:, shape[1]]
    factor, move = (high - low) / 2, (high + low) / 2
    assert (factor >= 2 / 3 - 1e-5).all()
    assert (factor <= 3 / 2 + 1e-5).all()
    assert (move.abs() <= 0.2 + 1e-5).all()


def test_isotropic_scaling_has_one_factor_and_fills_the_same_range() -> None:
    ones = torch.ones(5000, 2, 3)
    factors = scale_and_translate(ones, seeded(), (0.5, 2.0), 0.0, isotropic=True)
    assert torch.equal(factors, factors[:, :1, :1].expand_as(factors))
    assert (factors.min(), factors.max()) == (pytest.approx(0.5, abs=0.01), pytest.approx(2.0, abs=0.01))
    moved = scale_and_translate(ones, seeded(), (0.5, 2.0), 0.3, isotropic=True) - factors
    assert torch.equal(moved[:, 0], moved[:, 1])
    assert (moved[:, 0].std(1) > 0).all()  # the shift is still one for each axis


def test_scale_and_translate_fills_its_range_and_differs_by_axis() -> None:
    ones = torch.ones(4000, 1, 3)
    factor = scale_and_translate(ones, seeded(), shift=0.0)[:, 0]
    assert torch.allclose(factor.amin(0), torch.tensor(2 / 3), atol=0.01)
    assert torch.allclose(factor.amax(0), torch.tensor(3 / 2), atol=0.01)
    assert (factor[:, 0] != factor[:, 1]).all()
    move = scale_and_translate(ones, seeded(), scale=(1.0, 1.0), shift=0.5)[:, 0] - 1
    assert torch.allclose(move.amin(0), torch.tensor(-0.5), atol=0.01)
    assert torch.allclose(move.mean(0), torch.tensor(0.0), atol=0.02)


@laws
@given(shapes, seeds, st.sampled_from(["x", "y", "z"]))
def test_rotation_keeps_height_lengths_and_handedness(shape: tuple[int, int], seed: int, axis: UpAxis) -> None:
    points = clouds(*shape, seed)
    turned = rotate(points, seeded(seed), axis)
    up = "xyz".index(axis)
    assert torch.equal(turned[..., up], points[..., up])
    assert torch.allclose(turned.norm(dim=2), points.norm(dim=2), atol=1e-5)
    basis = rotate(torch.eye(3)[None], seeded(seed), axis)[0]
    assert torch.allclose(torch.linalg.det(basis), torch.tensor(1.0), atol=1e-5)


def test_rotation_angles_cover_the_circle() -> None:
    turned = rotate(torch.tensor([[[1.0, 0.0, 0.0]]]).repeat(4000, 1, 1), seeded(), "z")[:, 0]
    quarter = torch.atan2(turned[:, 1], turned[:, 0]).div(torch.pi / 2).floor().long() + 2
    assert torch.bincount(quarter, minlength=4).min() > 900


def test_free_rotations_are_rotations_that_cover_the_sphere() -> None:
    basis = rotate_freely(torch.eye(3, dtype=torch.float64).repeat(4000, 1, 1), seeded())
    torch.testing.assert_close(basis @ basis.mT, torch.eye(3, dtype=torch.float64).expand_as(basis))
    assert torch.linalg.det(basis).sub(1).abs().max() < 1e-9
    # Each coordinate of a uniform point on the sphere is uniform in [-1, 1] (Archimedes).
    for coordinates in basis.flatten(1).T:
        counts = torch.histc(coordinates, 4, -1, 1)
        assert counts.min() > 900
        assert counts.max() < 1100


def test_jitter_has_its_deviation_and_limit() -> None:
    moves = jitter(torch.zeros(50, 400, 3), seeded(), std=0.02, clip=0.05)
    assert moves.abs().max() == pytest.approx(0.05)
    assert moves.std() == pytest.approx(0.02, rel=0.05)
    assert jitter(torch.zeros(1, 9, 3), seeded()).abs().max() <= 0.05


@laws
@given(shapes, seeds, st.data())
def test_random_subset_draws_different_points_of_the_same_sample(
    shape: tuple[int, int], seed: int, data: st.DataObject
) -> None:
    points = clouds(*shape, seed)
    count = data.draw(st.integers(1, shape[1]))
    drawn = positions(random_subset(points, count, seeded(seed)), points)
    assert drawn.shape == (shape[0], count)
    assert all(len(row.unique()) == count for row in drawn)


def test_random_subset_is_uniform() -> None:
    points = torch.arange(10.0)[None, :, None].repeat(5000, 1, 3)
    counts = torch.bincount(random_subset(points, 3, seeded())[..., 0].flatten().long(), minlength=10)
    assert (counts - 1500).abs().max() < 200


@pytest.mark.parametrize(("available", "count", "candidates"), [(1500, 1024, 1200), (60, 40, 48), (60, 55, 60)])
def test_subsample_train_draws_from_the_farthest_points(available: int, count: int, candidates: int) -> None:
    points = clouds(3, available)
    drawn = positions(subsample_train(points, count, seeded()), points)
    farthest = positions(subsample_eval(points, candidates), points)
    for row, allowed in zip(drawn, farthest, strict=True):
        assert len(row.unique()) == count
        assert set(row.tolist()) <= set(allowed.tolist())
        assert set(row.tolist()) != set(allowed[:count].tolist()), "the draw is not random"


@pytest.mark.parametrize(("available", "count", "candidates"), [(60, 40, 48), (45, 40, 45)])
def test_one_draw_takes_the_farthest_points_of_the_same_ranks(available: int, count: int, candidates: int) -> None:
    points = clouds(3, available)
    farthest = eval_index(points, candidates) if candidates < available else torch.arange(available).expand(3, -1)

    def ranks(shared_draw: bool, seed: int = 0) -> list[list[int]]:
        index = train_index(points, count, seeded(seed), shared_draw)
        assert index.shape == (3, count)
        return [[row.tolist().index(i) for i in chosen] for row, chosen in zip(farthest, index.tolist(), strict=True)]

    first, *others = ranks(shared_draw=True)
    assert others == [first, first]
    assert len(set(first)) == count
    assert ranks(shared_draw=True, seed=1)[0] != first
    assert len({tuple(row) for row in ranks(shared_draw=False)}) == 3


def test_positions_are_those_of_the_points() -> None:
    points = clouds(3, 50)
    for index, subset in (
        (random_index(points, 20, seeded()), random_subset(points, 20, seeded())),
        (train_index(points, 20, seeded()), subsample_train(points, 20, seeded())),
        (eval_index(points, 20), subsample_eval(points, 20)),
    ):
        assert torch.equal(index, positions(subset, points))
    for index in (eval_index(points, 50), train_index(points, 50, seeded()), train_index(points, 50, seeded(), True)):
        assert torch.equal(index, torch.arange(50).expand(3, -1))


def test_subsample_eval_spreads_the_points_and_starts_at_the_first() -> None:
    line = torch.zeros(1, 5, 3)
    line[0, :, 0] = torch.tensor([0.0, 0.1, 4.0, 10.0, 9.9])
    assert subsample_eval(line, 3)[0, :, 0].tolist() == pytest.approx([0.0, 10.0, 4.0])


def test_subsampling_to_the_number_there_is_changes_nothing() -> None:
    points = clouds(2, 16)
    assert torch.equal(subsample_train(points, 16, seeded()), points)
    assert torch.equal(subsample_eval(points, 16), points)


@pytest.mark.parametrize("count", [0, 31])
def test_impossible_counts_are_refused_with_both_numbers(count: int) -> None:
    points, message = clouds(), f"{count} points asked of clouds of 30"
    with pytest.raises(ValueError, match=message):
        random_subset(points, count, seeded())
    with pytest.raises(ValueError, match=message):
        subsample_train(points, count, seeded())
    with pytest.raises(ValueError, match=message):
        subsample_eval(points, count)
