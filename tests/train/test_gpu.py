"""Training on a CUDA device: what the tests on a CPU show of the same paths, shown where they are for."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cut_off import run_until_saved
from run_folder import repeatable_metrics

from pc_ewa.config import Experiment
from pc_ewa.errors import TrainingError
from pc_ewa.models.losses import LossOutput
from pc_ewa.train import run
from pc_ewa.train.compiled import compiled
from pc_ewa.train.distributed import World
from pc_ewa.train.loop import train_step
from pc_ewa.train.objectives import Classify
from pc_ewa.train.setup import build

MakeExperiment = Callable[..., Experiment]
MODES = ["null", "default", "reduce-overhead"]

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_step_waits(experiment: MakeExperiment, mode: str, precision: str) -> None:
    """Torch raises at whatever makes the host wait; the first steps may, as they compile and capture."""
    made = experiment("device=cuda", f"train.compile={mode}", f"train.precision={precision}", "ewa.schedule=constant")
    world = World(0, 1, torch.device("cuda", 0))
    setup = build(made, world)
    assert setup.guard.deferred
    assert setup.batches.clouds.points.is_cuda
    setup.model.train()
    model = compiled(setup.model, made)
    for step in range(4):
        train_step(setup, made, world, model, step)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(4, 7):
            train_step(setup, made, world, model, step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert setup.guard.found() is None


@pytest.mark.parametrize("mode", MODES)
def test_a_gradient_that_is_not_finite_ends_the_run_and_reaches_no_checkpoint(
    experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    loss = Classify.loss

    def broken(self: Classify, model: torch.nn.Module, batch: object, step: int) -> LossOutput:
        output = loss(self, model, batch, step)  # type: ignore[arg-type]
        return output._replace(loss=output.loss * math.nan) if step == 3 else output

    monkeypatch.setattr(Classify, "loss", broken)
    made = experiment("device=cuda", f"train.compile={mode}", "train.steps=8", "train.save_every=3")
    with pytest.raises(TrainingError, match=r"^step 4: loss nan"):
        run(made)
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert saved["progress"]["step"] == 3
    assert all(tensor.isfinite().all() for tensor in saved["model"].values())


@pytest.mark.parametrize("mode", MODES)
def test_a_resumed_run_is_the_undisturbed_one(
    experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """To rounding: some kernels of CUDA add up in any order."""
    whole, cut = (experiment("device=cuda", f"train.compile={mode}", f"output={tmp_path}/{n}") for n in ("a", "b"))
    run(whole)
    run_until_saved(2, cut, monkeypatch)
    run(cut)
    first, second = (torch.load(tmp_path / n / "checkpoints" / "last.pt", map_location="cpu") for n in ("a", "b"))
    assert first["model"].keys() == second["model"].keys()
    for key, value in first["model"].items():
        torch.testing.assert_close(second["model"][key], value, rtol=1e-3, atol=1e-4, msg=key)
    assert [line["step"] for line in repeatable_metrics(tmp_path / "a")] == [
        line["step"] for line in repeatable_metrics(tmp_path / "b")
    ]


def test_compiled_steps_are_close_to_plain_ones(experiment: MakeExperiment) -> None:
    """Without what is drawn inside of the compiled part, from another stream."""
    losses = []
    for mode in MODES:
        same = ("model.drop_path=0", "model.head_dropout=0", "ewa=null")
        made = experiment("device=cuda", f"train.compile={mode}", *same)
        world = World(0, 1, torch.device("cuda", 0))
        setup = build(made, world)
        setup.model.train()
        model = compiled(setup.model, made)
        losses.append([train_step(setup, made, world, model, step)["loss"].item() for step in range(4)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[2] == pytest.approx(losses[0], rel=1e-3)


def test_on_a_gpu_training_is_that_on_a_cpu(experiment: MakeExperiment) -> None:
    """One step: same batch, same loss and gradient to rounding, where nothing is drawn on the device."""
    same = ("model.drop_path=0", "model.head_dropout=0", "ewa=null", "augment.scale=null", "augment.shift=0")
    figures = []
    for device in (torch.device("cpu"), torch.device("cuda", 0)):
        made, world = experiment(f"device={device.type}", "data.num_points=64", *same), World(0, 1, device)
        setup = build(made, world)
        setup.model.train()
        step = train_step(setup, made, world, setup.model, 0)
        figures.append({name: step[name].item() for name in ("loss", "grad_norm")})
    assert figures[1] == pytest.approx(figures[0], rel=1e-3)
