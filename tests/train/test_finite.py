"""Gradients that are not finite where nobody waits to read them, as on a GPU; here on a CPU, which does the same."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folder import metrics
from torch import Tensor, nn

from pc_ewa import ops
from pc_ewa.config import Experiment
from pc_ewa.errors import TrainingError
from pc_ewa.models.losses import LossOutput
from pc_ewa.ops.checks import noting_in
from pc_ewa.train import run
from pc_ewa.train import setup as setups
from pc_ewa.train.batches import Batch
from pc_ewa.train.distributed import World
from pc_ewa.train.loop import train_step
from pc_ewa.train.meter import Meter
from pc_ewa.train.objectives import Classify
from pc_ewa.train.setup import Setup, build

WORLD = World(0, 1, torch.device("cpu"))
MakeExperiment = Callable[..., Experiment]

# What makes the host wait for a GPU: its numbers, or how many there are.
WAITS = {"aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::is_nonzero"}


@pytest.fixture
def deferred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setups, "can_defer", lambda model, device: True)


def break_loss(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Make the loss of a step NaN, from 1."""
    loss = Classify.loss

    def broken(self: Classify, model: nn.Module, batch: Batch, step: int) -> LossOutput:
        output = loss(self, model, batch, step)
        return output._replace(loss=output.loss * math.nan) if step + 1 == at else output

    monkeypatch.setattr(Classify, "loss", broken)


def weights(setup: Setup) -> list[Tensor]:
    moments = [value for state in setup.optimizer.state.values() for value in state.values()]
    return copy.deepcopy([*setup.model.parameters(), *moments])


def test_no_step_waits_for_the_device(experiment: MakeExperiment, deferred: None) -> None:
    """Draw, augmentation, ops, forward, backward, clipping, optimizer, averaging; and the meter."""
    drawn = ("augment.jitter=0.01", "augment.rotate=true", "model.head_dropout=0.5", "model.drop_path=0.5")
    others = ("ewa.schedule=constant", "train.accumulate=2", "train.label_smoothing=0.1")
    made = experiment(*drawn, *others)
    setup, meter = build(made, WORLD), Meter()
    meter.add(train_step(setup, made, WORLD, setup.model, 0))
    with torch.autograd.profiler.profile() as profile:
        meter.add(train_step(setup, made, WORLD, setup.model, 1))
    seen = {event.name for event in profile.function_events}
    assert {"pc_ewa::farthest_point_sample", "pc_ewa::knn", "aten::_fused_adamw_", "aten::lerp_"} <= seen
    assert not [event.name for event in profile.function_events if event.name in WAITS and not in_optimizer(event)]


def in_optimizer(event: Any) -> bool:
    """The kernel of AdamW for a CPU reads its own count of steps, that for a GPU does not."""
    parent = event.cpu_parent
    return parent is not None and (parent.name == "aten::_fused_adamw_" or in_optimizer(parent))


def test_deferred_steps_are_those_read_at_once(experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for deferred in (False, True):
        monkeypatch.setattr(setups, "can_defer", lambda model, device, deferred=deferred: deferred)
        made = experiment("ewa.schedule=constant")
        setup = build(made, WORLD)
        losses = [train_step(setup, made, WORLD, setup.model, step)["loss"] for step in range(3)]
        assert setup.guard.found() is None
        results.append([*losses, *weights(setup)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_bad_step_and_those_after_it_leave_weights_moments_and_experts(
    experiment: MakeExperiment, deferred: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = experiment("ewa.schedule=constant")
    setup = build(made, WORLD)
    break_loss(monkeypatch, at=2)
    train_step(setup, made, WORLD, setup.model, 0)
    before = weights(setup)
    for step in (1, 2):
        train_step(setup, made, WORLD, setup.model, step)
        assert all(torch.equal(a, b) for a, b in zip(weights(setup), before, strict=True))
    found = setup.guard.found()
    assert found is not None
    assert found[0] == 2
    assert "nan" in found[1]


def test_a_run_ends_before_it_saves_or_records_what_comes_after(
    experiment: MakeExperiment, deferred: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bad step is named, not the one at which it was found, and the checkpoint before it is whole."""
    break_loss(monkeypatch, at=4)
    rarely = ("train.steps=8", "train.save_every=3", "train.eval_every=4")
    with pytest.raises(TrainingError, match=r"^step 4: loss nan, .*: not finite; .*lower train\.lr") as caught:
        run(experiment(*rarely))
    assert "\n" not in str(caught.value)
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert saved["progress"]["step"] == 3
    assert all(tensor.isfinite().all() for tensor in saved["model"].values())
    assert not (tmp_path / "run" / "metrics.jsonl").exists() or metrics(tmp_path / "run") == []
    monkeypatch.undo()
    summary = run(experiment(*rarely))  # the same command goes on from there
    assert summary is not None
    assert summary["steps"] == 8


def test_a_cloud_with_nan_is_told_of_too(experiment: MakeExperiment, deferred: None) -> None:
    made = experiment()
    setup = build(made, WORLD)
    draw = setup.batches.draw

    def broken(step: int, slot: int) -> Batch:
        batch = draw(step, slot)
        batch.points[1, 5, 0] = math.nan
        return batch

    setup.batches.draw = broken  # type: ignore[method-assign]
    before = weights(setup)
    train_step(setup, made, WORLD, setup.model, 0)
    assert all(torch.equal(a, b) for a, b in zip(weights(setup), before, strict=False))
    found = setup.guard.found()
    assert found is not None
    assert found[0] == 1


def test_noted_coordinates_are_taken_for_zeros() -> None:
    """By every op; outside of the block they are an error again."""
    points, flag = torch.rand(2, 20, 3), torch.zeros((), dtype=torch.bool)
    bad, clean = points.clone(), points.clone()
    bad[0, 3], clean[0, 3] = math.inf, 0
    calls: list[Callable[[Tensor], Tensor]] = [
        lambda x: ops.farthest_point_sample(x, 4),
        lambda x: ops.knn(points, x, 3)[1],
        lambda x: ops.ball_query(points, x, 0.2, 3),
        lambda x: ops.chamfer_distance(points, x),
    ]
    for call in calls:
        flag.zero_()
        with noting_in(flag):
            assert torch.equal(call(clean), call(clean))
            assert not flag
            noted = call(bad)
            assert flag
        assert torch.equal(noted, call(clean))
        with pytest.raises(ValueError, match="NaN or inf"):
            call(bad)


def test_nested_flags_are_set_by_the_innermost_block() -> None:
    outer, inner, bad = torch.tensor(False), torch.tensor(False), torch.full((1, 4, 3), torch.nan)
    with noting_in(outer):
        with noting_in(inner):  # equal to the outer one
            ops.farthest_point_sample(bad, 2)
        assert inner
        assert not outer
        ops.farthest_point_sample(bad, 2)
        assert outer
    with pytest.raises(ValueError, match="NaN or inf"):
        ops.farthest_point_sample(bad, 2)
