"""Voting against a slow re-writing of it, and the same for every number of processes."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pc_ewa import ops
from pc_ewa.data import Clouds
from pc_ewa.data.transforms import normalize_unit_sphere
from pc_ewa.errors import ConfigError
from pc_ewa.eval import EvalSettings
from pc_ewa.eval.accuracy import Accuracy, evaluate_classifier
from pc_ewa.eval.voting import evaluate_voted
from pc_ewa.streams import stream


class Recorder(nn.Module):
    """A small classifier whose answers depend on the draw; keeps what it was shown and what it said."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 3, bias=False)
        self.seen: list[Tensor] = []
        self.said: list[Tensor] = []

    def forward(self, points: Tensor) -> Tensor:
        logits = self.layer(points).mean(1) ** 3
        self.seen.append(points)
        self.said.append(logits)
        return logits


@pytest.fixture
def clouds() -> Clouds:
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(10, 20, 3, generator=generator) * torch.tensor([1.0, 0.5, 2.0])
    labels = torch.arange(10) % 3
    return Clouds(points, None, labels, ("a", "b", "c"), "y", "toy")


def test_it_is_the_argmax_of_the_mean_of_the_logits(clouds: Clouds) -> None:
    model = Recorder()
    accuracy = evaluate_voted(model, clouds, EvalSettings(8, batch_size=10), votes=5)
    logits = torch.stack(model.said)
    expected = torch.zeros(3, 3, dtype=torch.int64)
    for label, predicted in zip(clouds.labels.tolist(), (logits.sum(0) / 5).argmax(1).tolist(), strict=True):
        expected[label, predicted] += 1
    assert torch.equal(accuracy.confusion, expected)
    assert (accuracy.votes, accuracy.class_names, accuracy.samples) == (5, ("a", "b", "c"), 10)
    # The draws matter here: no single vote, and no count of votes, says the same.
    single = [vote.argmax(1) for vote in logits]
    mean = logits.mean(0).argmax(1)
    assert not any(torch.equal(vote, mean) for vote in single)
    assert not torch.equal(torch.stack(single).mode(0).values, mean)


def test_every_vote_is_a_stretched_and_moved_subset_of_the_farthest_points(clouds: Clouds) -> None:
    model = Recorder()
    evaluate_voted(model, clouds, EvalSettings(8, batch_size=10), votes=3)
    whole = normalize_unit_sphere(clouds.points)
    subsets = set()
    for shown in model.seen:
        assert shown.shape == (10, 8, 3)
        for cloud, points in zip(shown, whole, strict=True):
            found = undo(cloud, points)
            assert len(set(found)) == 8
            subsets.add(tuple(sorted(found)))
    assert len(subsets) > 10  # a fresh draw for every vote and cloud


def undo(drawn: Tensor, points: Tensor) -> list[int]:
    """Positions of the points of `drawn` in `points`, from the order of their x, y and z."""
    candidates = ops.farthest_point_sample(points[None], 9)[0]  # 8 points have int(1.2 * 8) candidates
    for left_out in range(9):
        kept = torch.cat([candidates[:left_out], candidates[left_out + 1 :]])
        chosen = points[kept]
        match = chosen[:, 0].argsort()[drawn[:, 0].argsort().argsort()]
        source = chosen[match]
        fits = []
        for axis in range(3):
            design = torch.stack([source[:, axis], torch.ones(8)], dim=1).double()
            solution = torch.linalg.lstsq(design, drawn[:, axis : axis + 1].double()).solution.flatten()
            residual = (design @ solution - drawn[:, axis].double()).abs().max()
            fits.append(
                residual < 1e-5 and 2 / 3 - 1e-5 <= solution[0] <= 1.5 + 1e-5 and abs(solution[1]) <= 0.2 + 1e-5
            )
        if all(fits):
            return kept[match].tolist()
    raise AssertionError("not a stretched and moved subset of the farthest points")


def test_clouds_of_just_enough_points_are_stretched_and_moved(clouds: Clouds) -> None:
    model = Recorder()
    evaluate_voted(
        model, clouds, EvalSettings(20, normalize=False, batch_size=10), votes=2, scale=(2.0, 2.0), shift=0.0
    )
    assert all(torch.equal(shown, 2 * clouds.points) for shown in model.seen)


def test_the_same_call_gives_the_same_logits_and_another_seed_others(clouds: Clouds) -> None:
    def said(seed: int) -> Tensor:
        model = Recorder()
        torch.manual_seed(torch.seed())  # whatever the default generator does
        evaluate_voted(model, clouds, EvalSettings(8, batch_size=4), votes=3, seed=seed)
        return torch.cat(model.said)

    assert torch.equal(said(0), said(0))
    assert not torch.equal(said(0), said(1))


@pytest.mark.parametrize("plain", [False, True])
def test_processes_share_the_batches_and_change_nothing(
    clouds: Clouds, monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    def measured() -> tuple[Accuracy, list[Tensor]]:
        model = Recorder()
        if plain:
            return evaluate_classifier(model, clouds, EvalSettings(8, batch_size=3)), model.seen
        return evaluate_voted(model, clouds, EvalSettings(8, batch_size=3), votes=2), model.seen

    alone, seen = measured()
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda confusion: None)
    parts, shown = [], []
    for rank in range(2):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        part, points = measured()
        parts.append(part.confusion)
        shown.extend(points)
    assert torch.equal(parts[0] + parts[1], alone.confusion)
    assert parts[0].sum() == 6
    assert parts[1].sum() == 4
    key = [tuple(points.flatten().tolist()) for points in seen]
    assert sorted(key) == sorted(tuple(points.flatten().tolist()) for points in shown)


def test_streams_of_votes_and_batches_differ() -> None:
    seeds = {stream(seed, vote, batch) for seed in range(3) for vote in range(3) for batch in range(3)}
    assert len(seeds) == 27


@pytest.mark.parametrize("votes", [1, 0, -3])
def test_fewer_than_two_votes_are_refused(clouds: Clouds, votes: int) -> None:
    with pytest.raises(ConfigError, match=f"votes={votes}: .* votes=1 is the plain evaluation"):
        evaluate_voted(Recorder(), clouds, EvalSettings(8), votes=votes)


def test_the_mode_is_restored_and_too_few_points_are_refused(clouds: Clouds) -> None:
    model = Recorder().train()
    with pytest.raises(ValueError, match="21 points asked of clouds of 20"):
        evaluate_voted(model, clouds, EvalSettings(21), votes=2)
    assert model.training
