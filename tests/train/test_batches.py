"""Batches as a pure function of (seed, step, slot)."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pc_ewa import ops
from pc_ewa.config import Augment, Experiment
from pc_ewa.data import Clouds, load_dataset, transforms
from pc_ewa.streams import stream
from pc_ewa.train.batches import AUGMENT, INIT, MODEL, Batches, augment, sample_points

CPU = torch.device("cpu")
MakeExperiment = Callable[..., Experiment]
PLAIN = ("augment.scale=null", "augment.shift=0", "data.normalize=false", "data.num_points=64")


@pytest.fixture
def clouds(toy_file: Path) -> Clouds:
    return load_dataset("hdf5", "train", path=toy_file)


def positions(points: Tensor, clouds: Clouds) -> list[int]:
    """Where the shapes of an unchanged batch are in the dataset."""
    everything, _ = clouds.batch(range(len(clouds)))
    same = (points[:, None] == everything[None]).all(3).all(2)
    assert same.sum(1).eq(1).all()
    return same.nonzero()[:, 1].tolist()


def test_a_batch_does_not_depend_on_what_was_drawn_before(clouds: Clouds, experiment: MakeExperiment) -> None:
    places = [(step, slot) for step in (0, 1, 5) for slot in (0, 1)]
    one, other = (Batches(clouds, experiment(), 2, CPU) for _ in range(2))
    drawn = {place: one.draw(*place) for place in places}
    torch.manual_seed(5)
    for place in reversed(places):
        points, labels, _ = other.draw(*place)
        assert torch.equal(points, drawn[place][0])
        assert torch.equal(labels, drawn[place][1])


def test_every_step_slot_and_seed_has_its_own_augmentation(clouds: Clouds, experiment: MakeExperiment) -> None:
    """One shape in every place, so that only the augmentation can differ."""
    same = clouds.select([0] * 24)
    drawn = []
    for seed in (0, 1):
        batches = Batches(same, experiment(f"seed={seed}"), 2, CPU)
        drawn += [batches.draw(step, slot)[0] for step in range(4) for slot in range(2)]
    clouds_drawn = torch.cat(drawn)
    pairs = torch.cdist(clouds_drawn.flatten(1), clouds_drawn.flatten(1))
    assert pairs.fill_diagonal_(1).min() > 1e-3


def test_an_epoch_shows_no_shape_twice_and_each_in_its_own_order(clouds: Clouds, experiment: MakeExperiment) -> None:
    batches = Batches(clouds.select(range(22)), experiment(*PLAIN), 1, CPU)
    assert batches.steps_per_epoch == 2
    orders = []
    for epoch in range(4):
        seen = [positions(batches.draw(2 * epoch + place, 0)[0], clouds) for place in range(2)]
        orders.append(seen[0] + seen[1])
        assert len(set(orders[-1])) == 16
    assert len({tuple(order) for order in orders}) == 4
    assert set().union(*orders) == set(range(22))  # what an epoch leaves out is not always the same


def test_labels_go_with_their_shapes(clouds: Clouds, experiment: MakeExperiment) -> None:
    points, labels, _ = Batches(clouds, experiment(*PLAIN), 1, CPU).draw(0, 0)
    assert labels.tolist() == [int(clouds.labels[i]) for i in positions(points, clouds)]


def test_two_slots_are_the_halves_of_one(clouds: Clouds, experiment: MakeExperiment) -> None:
    whole, halves = (Batches(clouds, experiment(*PLAIN), slots, CPU) for slots in (1, 2))
    for step in (0, 4):
        parts = [halves.draw(step, slot) for slot in range(2)]
        points, labels, _ = whole.draw(step, 0)
        assert torch.equal(torch.cat([part[0] for part in parts]), points)
        assert torch.equal(torch.cat([part[1] for part in parts]), labels)


def test_training_clouds_are_cut_to_num_points_after_normalising(clouds: Clouds, experiment: MakeExperiment) -> None:
    batches = Batches(clouds, experiment("augment.scale=null", "augment.shift=0"), 1, CPU)
    points = batches.draw(0, 0).points
    assert points.shape == (8, 48, 3)
    assert points.norm(dim=2).max() <= 1 + 1e-6


def test_random_points_are_drawn_before_normalising_and_farthest_ones_after(
    clouds: Clouds, experiment: MakeExperiment
) -> None:
    """As in the official code: pre-training scales what it drew, fine-tuning draws from what it scaled."""
    generator = torch.Generator().manual_seed(0)
    points, _ = clouds.batch(range(4))
    for sampling in ("random", "farthest"):
        data = experiment(f"data.sampling={sampling}", "data.num_points=16").data
        drawn, index = sample_points(points, data, generator)
        assert index is not None
        assert all(len(row.unique()) == 16 for row in index)
        whole, part = transforms.normalize_unit_sphere(points), ops.gather_points(points, index)
        expected = {
            "random": transforms.normalize_unit_sphere(part),
            "farthest": ops.gather_points(whole, index),
        }
        torch.testing.assert_close(drawn, expected[sampling])
        other = expected["farthest" if sampling == "random" else "random"]
        assert (drawn - other).abs().max() > 0.01
        raw, index = sample_points(points, data.model_copy(update={"normalize": False}), generator)
        assert index is not None
        assert torch.equal(raw, ops.gather_points(points, index))


def test_random_points_are_drawn_even_if_there_are_no_more(clouds: Clouds, experiment: MakeExperiment) -> None:
    """In another order each time; the shape stays."""
    data = experiment("data.sampling=random", "data.num_points=64", "data.normalize=false").data
    points, _ = clouds.batch(range(2))
    drawn, index = sample_points(points, data, torch.Generator().manual_seed(0))
    assert index is not None
    assert torch.equal(index.sort(1).values, torch.arange(64).expand(2, -1))
    assert torch.equal(drawn, ops.gather_points(points, index))


def test_model_randomness_is_seeded_by_step_and_slot(clouds: Clouds, experiment: MakeExperiment) -> None:
    batches = Batches(clouds, experiment(), 2, CPU)

    def drawn(step: int, slot: int) -> float:
        batches.seed_model(step, slot)
        return torch.rand(()).item()

    places = [(0, 0), (0, 1), (1, 0)]
    assert len({drawn(*place) for place in places}) == 3
    assert [drawn(*place) for place in places] == [drawn(*place) for place in places]


def test_random_streams_differ_by_seed_purpose_and_number() -> None:
    streams = [
        stream(seed, purpose, *numbers)
        for seed in (0, 1, 2**32 - 1)
        for purpose in (INIT, AUGMENT, MODEL)
        for numbers in ((0, 0), (0, 1), (1, 0))
    ]
    assert len(set(streams)) == len(streams)
    assert all(0 <= number < 2**63 for number in streams)


def test_augmentation_rotates_then_scales_and_shifts_then_jitters() -> None:
    points = torch.rand(2, 5, 3)
    how = Augment(scale=(0.5, 2.0), shift=0.3, rotate=True, jitter=0.02)
    generator = torch.Generator().manual_seed(7)
    expected = transforms.rotate(points, generator, "y")
    expected = transforms.scale_and_translate(expected, generator, (0.5, 2.0), 0.3)
    expected = transforms.jitter(expected, generator, std=0.02)
    assert torch.equal(augment(points, how, "y", torch.Generator().manual_seed(7)), expected)


@pytest.mark.parametrize(
    ("how", "law"),
    [
        ({}, lambda before, after: torch.equal(before, after)),
        # Turned about z: heights and distances to the axis stay.
        (
            {"rotate": True},
            lambda before, after: (
                torch.allclose(before[..., 2], after[..., 2])
                and torch.allclose(before[..., :2].norm(dim=-1), after[..., :2].norm(dim=-1))
                and not torch.allclose(before, after)
            ),
        ),
        # Moved only: one difference for each sample and axis.
        ({"shift": 0.2}, lambda before, after: (after - before).std(1).max() < 1e-6 < (after - before).abs().max()),
        # Stretched only: one quotient for each sample and axis.
        (
            {"scale": (0.5, 2.0)},
            lambda before, after: (after / before).std(1).max() < 1e-5 < (after - before).abs().max(),
        ),
        # Grown or shrunk only: one quotient for each sample.
        (
            {"scale": (0.5, 2.0), "isotropic": True},
            lambda before, after: (
                (after / before).flatten(1).std(1).max() < 1e-5 < (after - before).abs().max()
                and (after / before).mean((1, 2)).std() > 1e-2
            ),
        ),
        ({"jitter": 0.01}, lambda before, after: 0 < (after - before).abs().max() <= 0.05 + 1e-6),
    ],
    ids=["nothing", "rotate", "shift", "scale", "isotropic", "jitter"],
)
def test_every_augmentation_can_be_switched_on_alone(
    how: dict[str, object], law: Callable[[Tensor, Tensor], bool]
) -> None:
    points = torch.rand(3, 6, 3) + 0.1
    only = Augment(**{"scale": None, "shift": 0.0, **how})
    assert law(points, augment(points, only, "z", torch.Generator().manual_seed(1)))
