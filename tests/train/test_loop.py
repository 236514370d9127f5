"""The loop: what a step does, what is recorded, and how it stops when it must."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from run_folder import metrics
from torch import Tensor, nn

from pc_ewa.config import Experiment
from pc_ewa.errors import TrainingError
from pc_ewa.ewa import expert_layers
from pc_ewa.models.losses import LossOutput
from pc_ewa.train import loop, run
from pc_ewa.train.batches import Batch
from pc_ewa.train.distributed import World
from pc_ewa.train.loop import train_step
from pc_ewa.train.objectives import Classify
from pc_ewa.train.optim import learning_rate
from pc_ewa.train.setup import Setup, build

WORLD = World(0, 1, torch.device("cpu"))
MakeExperiment = Callable[..., Experiment]


def steps_of(made: Experiment, count: int = 2) -> Setup:
    setup = build(made, WORLD)
    for step in range(count):
        train_step(setup, made, WORLD, setup.model, step)
    return setup


def in_double(setup: Setup) -> Setup:
    """In float32 AdamW makes whole steps of gradients that are zero but for rounding, as before a batch norm."""
    setup.model.double()
    draw = setup.batches.draw
    setup.batches.draw = lambda *place: Batch(draw(*place)[0].double(), draw(*place)[1])  # type: ignore[method-assign]
    return setup


def test_a_step_is_what_one_would_write_by_hand(experiment: MakeExperiment) -> None:
    """Forward, mean cross-entropy, backward, clipping, AdamW at the rate of the step, averaging of the experts."""
    made = experiment("train.clip_grad=0.5", "train.weight_decay=0.1", "ewa.schedule=constant", "ewa.share_rate=0.2")
    setup, twin = in_double(build(made, WORLD)), in_double(build(made, WORLD))
    assert twin.averager is not None
    twin.averager.detach()
    for step in range(2):
        figures = train_step(setup, made, WORLD, setup.model, step)
        points, labels, _ = twin.batches.draw(step, 0)
        twin.batches.seed_model(step, 0)
        loss = F.cross_entropy(twin.model(points).float(), labels)
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in twin.model.parameters() if p.grad is not None]).norm()
        for parameter in twin.model.parameters():
            if parameter.grad is not None:
                parameter.grad *= min(1.0, 0.5 / (norm.item() + 1e-6))
        for group in twin.optimizer.param_groups:
            group["lr"] = learning_rate(step, setup.total_steps, made.train)
        twin.optimizer.step()
        twin.optimizer.zero_grad()
        with torch.no_grad():
            for mixture in expert_layers(twin.model).values():
                for stack in mixture.parameters():
                    stack.copy_(torch.stack([0.8 * stack[0] + 0.2 * stack[1], 0.8 * stack[1] + 0.2 * stack[0]]))
        assert figures["loss"].item() == pytest.approx(loss.item())
        assert figures["grad_norm"].item() == pytest.approx(norm.item(), rel=1e-12)
    for name, parameter in setup.model.named_parameters():
        torch.testing.assert_close(parameter, twin.model.get_parameter(name), rtol=0, atol=1e-12, msg=name)


def test_accumulation_averages_the_parts(experiment: MakeExperiment) -> None:
    """The gradient of 2 parts is the mean of the gradients of each, and the model sees each part's own randomness."""
    made = experiment("train.accumulate=2", "train.clip_grad=null")
    setup, twin = in_double(build(made, WORLD)), in_double(build(made, WORLD))
    figures = train_step(setup, made, WORLD, setup.model, 0)
    losses = []
    for slot in range(2):
        points, labels, _ = twin.batches.draw(0, slot)
        assert len(points) == 4
        twin.batches.seed_model(0, slot)
        losses.append(F.cross_entropy(twin.model(points).float(), labels))
        (losses[-1] / 2).backward()
    total = torch.cat([p.grad.flatten() for p in twin.model.parameters() if p.grad is not None]).norm()
    assert figures["grad_norm"].item() == pytest.approx(total.item(), rel=1e-12)
    assert figures["loss"].item() == pytest.approx((losses[0] + losses[1]).item() / 2, rel=1e-6)


def test_training_learns_the_toy_classes(experiment: MakeExperiment, tmp_path: Path) -> None:
    """Whatever is wrong in a loop, it shows: chance is 1/3."""
    easy = ("augment.scale=[0.9, 1.1]", "augment.shift=0.05", "model.head_dropout=0", "model.drop_path=0")
    rare = ("train.eval_every=30", "train.save_every=60")
    summary = run(experiment("train.steps=60", "train.lr=5e-3", "model.num_groups=8", *easy, *rare))
    assert summary is not None
    assert summary["test_accuracy_merged"] >= 0.75
    losses = [line["loss"] for line in metrics(tmp_path / "run") if "loss" in line]
    assert losses[-1] < 0.6 * losses[0]


def test_metrics_tell_what_happened(experiment: MakeExperiment, tmp_path: Path) -> None:
    run(experiment("train.steps=12", "ewa.share_rate=0.4"))
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "loss" in line] == [10, 12]
    assert [line["step"] for line in lines if "val_accuracy" in line] == [2, 4, 6, 8, 10, 12]
    first, last = (line for line in lines if "loss" in line)
    mixture = "ewa/blocks.blocks.1.mlp"
    assert (first["share_rate"], last["share_rate"]) == (pytest.approx(0.4 * 10 / 12), pytest.approx(0.4))
    assert 0 < last[f"{mixture}/spread"] < 1
    assert 0.9 < last[f"{mixture}/cosine"] <= 1
    assert last["grad_norm"] > 0
    assert 0 <= last["accuracy"] <= 1
    # The mean over steps 1 to 10, and over 11 and 12.
    made = experiment()
    rates = [learning_rate(step, 12, made.train) for step in range(12)]
    assert (first["lr"], last["lr"]) == (pytest.approx(sum(rates[:10]) / 10), pytest.approx(sum(rates[10:]) / 2))
    assert 0 < last["samples_per_second"] < 1e6


def test_averaging_draws_the_experts_together(experiment: MakeExperiment) -> None:
    spreads = []
    for rate in (0.0, 0.3, 0.5):
        averager = steps_of(experiment(f"ewa.share_rate={rate}", "ewa.schedule=constant"), 3).averager
        assert averager is not None
        (statistics,) = averager.statistics().values()
        spreads.append(statistics.spread)
    # At the limit (N-1)/N = 1/2 the experts are merged after each step.
    assert spreads[0] > 2 * spreads[1] > 0
    assert spreads[2] < 1e-7


def test_without_ewa_the_model_is_dense(experiment: MakeExperiment, tmp_path: Path) -> None:
    summary = run(experiment("ewa=null"))
    assert summary is not None
    assert (summary["mixtures"], summary["ffns_training"], summary["ffns_merged"]) == (0, 2, 2)
    assert summary["params_training"] == summary["params_merged"]
    assert summary["test_correct_unmerged"] == summary["test_correct_merged"]
    last = metrics(tmp_path / "run")[-2]
    assert "loss" in last
    assert not any("ewa" in key or "share" in key for key in last)


def test_ewa_starts_from_the_dense_weights(experiment: MakeExperiment) -> None:
    """A comparison of the two compares training, not initialisation."""
    dense, mixed = build(experiment("ewa=null"), WORLD).model, build(experiment(), WORLD).model
    for name, parameter in dense.named_parameters():
        if name in dict(mixed.named_parameters()):
            assert torch.equal(parameter, mixed.get_parameter(name)), name
    experts = mixed.get_parameter("blocks.blocks.1.mlp.experts.fc1.weight")
    assert torch.equal(experts[1], dense.get_parameter("blocks.blocks.1.mlp.fc1.weight"))


def test_bf16_runs_and_differs_from_fp32(experiment: MakeExperiment) -> None:
    norms = []
    for precision in ("fp32", "bf16"):
        made = experiment(f"train.precision={precision}")
        setup = build(made, WORLD)
        figures = train_step(setup, made, WORLD, setup.model, 0)
        assert all(p.dtype == torch.float32 for p in setup.model.parameters())
        norms.append(figures["grad_norm"].item())
    assert 0 < abs(norms[0] - norms[1]) < 0.1 * norms[0]


def test_label_smoothing_is_that_of_cross_entropy(experiment: MakeExperiment) -> None:
    logits, labels = torch.tensor([[4.0, 0.0, -1.0], [0.0, 1.0, 2.0]]), torch.tensor([0, 1])
    objective = Classify(experiment("train.label_smoothing=0.3"))
    loss = objective.loss(lambda points: logits, Batch(torch.zeros(2, 4, 3), labels), 0)  # type: ignore[arg-type]
    targets = 0.7 * F.one_hot(labels, 3) + 0.3 / 3
    assert loss.loss.item() == pytest.approx(-(targets * logits.log_softmax(1)).sum(1).mean().item())
    assert loss.terms["accuracy"].item() == 0.5


def break_loss(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Make the loss NaN at one step, counted from 1."""
    loss, calls = Classify.loss, []

    def broken(self: Classify, model: nn.Module, batch: Batch, step: int) -> LossOutput:
        calls.append(1)
        output = loss(self, model, batch, step)
        return output._replace(loss=output.loss * math.nan) if len(calls) == at else output

    monkeypatch.setattr(Classify, "loss", broken)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_loss(monkeypatch, at=3)
    with pytest.raises(TrainingError, match=r"^step 3: .*not finite; .*lower train\.lr \(now 0\.0005\)") as caught:
        run(experiment())
    assert "\n" not in str(caught.value)
    folder = tmp_path / "run"
    assert not (folder / "summary.json").exists()
    saved = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    assert saved["progress"]["step"] == 2
    assert all(tensor.isfinite().all() for tensor in saved["model"].values())
    assert [line["step"] for line in metrics(folder)] == [2]
    monkeypatch.undo()
    summary = run(experiment())  # the same command goes on from there
    assert summary is not None
    assert summary["steps"] == 4


def test_training_that_diverges_ends_a_tool_with_one_line_and_2(
    toy_config: Path, tmp_path: Path, tool: Callable[..., Any]
) -> None:
    overrides = (f"output={tmp_path}/run", "train.lr=1e30", "train.clip_grad=null", "train.warmup=0")
    code, _, err = tool("finetune", toy_config, *overrides)
    assert code == 2
    assert err.startswith("error: step 2: loss nan")
    assert err.count("\n") == 1


def test_a_gradient_that_is_not_finite_reaches_no_weight(
    experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = experiment()
    setup = build(made, WORLD)
    before = {name: parameter.detach().clone() for name, parameter in setup.model.named_parameters()}
    break_loss(monkeypatch, at=1)
    with pytest.raises(TrainingError, match="step 1"):
        train_step(setup, made, WORLD, setup.model, 0)
    assert all(torch.equal(parameter, before[name]) for name, parameter in setup.model.named_parameters())


def test_evaluation_leaves_training_as_it_was(experiment: MakeExperiment, tmp_path: Path) -> None:
    """How often one looks at the validation part does not change what is learned."""
    for name, every in (("often", 1), ("once", 2)):
        run(experiment(f"output={tmp_path}/{name}", f"train.eval_every={every}"))
    often, once = (
        torch.load(tmp_path / name / "checkpoints" / "last.pt", weights_only=True)["model"]
        for name in ("often", "once")
    )
    assert all(torch.equal(often[key], once[key]) for key in once)


def test_the_seed_decides_everything(experiment: MakeExperiment) -> None:
    def weights(seed: int) -> Tensor:
        parameters = steps_of(experiment(f"seed={seed}"), 1).model.parameters()
        return torch.cat([parameter.detach().flatten() for parameter in parameters])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_signals_are_the_callers_again_after_training(experiment: MakeExperiment) -> None:
    import signal

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    run(experiment())
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert loop.LOG_EVERY == 10


def test_weights_that_are_not_finite_are_never_saved(experiment: MakeExperiment, tmp_path: Path) -> None:
    """The gradient of the step is finite, its length is not: the checkpoints hold the weights before it."""
    absurd = ("train.lr=3e38", "train.warmup=0", "train.clip_grad=null", "train.steps=3")
    with pytest.raises(TrainingError, match=r"step \d: .* holds NaN or inf: not finite; .*lower train\.lr"):
        run(experiment(*absurd))
    for path in (tmp_path / "run").rglob("*.pt"):
        content = torch.load(path, weights_only=True)
        assert all(value.isfinite().all() for value in content["model"].values())
    assert not (tmp_path / "run" / "summary.json").exists()
