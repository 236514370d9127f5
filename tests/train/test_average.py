"""Averages of the whole model: what they are, what they leave alone, and that a run reports them."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cut_off import run_until_saved
from run_folder import Measured
from torch import Tensor, nn

import pc_ewa
from pc_ewa.config import Experiment
from pc_ewa.errors import ConfigError
from pc_ewa.models.checkpoints.read import read_checkpoint
from pc_ewa.streams import stream
from pc_ewa.train import run
from pc_ewa.train.batches import STATISTICS, Batches
from pc_ewa.train.distributed import World
from pc_ewa.train.loop import train_step
from pc_ewa.train.setup import Setup, build

WORLD = World(0, 1, torch.device("cpu"))
MakeExperiment = Callable[..., Experiment]
Weights = dict[str, Tensor]


def states(setup: Setup, made: Experiment, steps: int) -> list[Weights]:
    """Train, and return the weights and buffers of the live model after each step."""
    found = []
    for step in range(steps):
        train_step(setup, made, WORLD, setup.model, step)
        found.append(copy.deepcopy(setup.model.state_dict()))
    return found


def assert_close(one: Weights, other: Weights) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(value, other[key].to(value.dtype), rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("ewa", ["ewa=null", "ewa.share_rate=0.3"], ids=["dense", "ewa"])
def test_ema_is_that_of_the_weights_and_running_statistics_of_every_step(experiment: MakeExperiment, ewa: str) -> None:
    made = experiment("average.kind=ema", "average.decay=0.7", "train.lr=1e-2", ewa)
    setup = build(made, WORLD)
    assert setup.measured(0) is setup.model
    live = states(setup, made, 4)
    expected = live[0]
    for state in live[1:]:
        for key, value in state.items():
            if value.is_floating_point():
                expected[key] = 0.7 * expected[key] + (1 - 0.7) * value
    expected |= {key: value for key, value in live[-1].items() if not value.is_floating_point()}
    assert_close(setup.measured(4).state_dict(), expected)
    assert setup.measured(4) is not setup.model
    moved = [key for key in expected if not torch.equal(expected[key], live[-1][key])]
    assert any(key.endswith("running_var") for key in moved)


def test_ema_begins_after_its_share_of_training(experiment: MakeExperiment) -> None:
    """With start=0.5 of 4 steps, the third weights are the first that count."""
    made = experiment("average.kind=ema", "average.decay=0.7", "average.start=0.5")
    setup = build(made, WORLD)
    assert setup.weight_average is not None
    live = states(setup, made, 2)
    assert (setup.weight_average.count, setup.weight_average.state(2)) == (0, {})
    assert setup.measured(2) is setup.model
    train_step(setup, made, WORLD, setup.model, 2)
    assert_close(setup.measured(3).state_dict(), setup.model.state_dict())
    assert any(not torch.equal(value, setup.model.state_dict()[key]) for key, value in live[1].items())


def test_swa_is_the_plain_mean_of_the_weights_after_each_epoch(experiment: MakeExperiment) -> None:
    """Epochs of 2 steps; from 2 of 8 steps on these are the weights after steps 4, 6 and 8."""
    made = experiment("average.kind=swa", "average.start=0.25", "train.steps=8", "train.lr=1e-2")
    setup = build(made, WORLD)
    live = states(setup, made, 8)
    averaged = setup.measured(8)
    for name, parameter in averaged.named_parameters():
        mean = (live[3][name] + live[5][name] + live[7][name]) / 3
        torch.testing.assert_close(parameter.detach(), mean, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_statistics_of_swa_are_those_of_one_pass_with_the_mean_weights(
    experiment: MakeExperiment, accumulate: int
) -> None:
    """Means over the parts of an epoch of the mean and the unbiased variance of what comes to each batch norm."""
    made = experiment("average.kind=swa", "average.start=0", f"train.accumulate={accumulate}", "ewa=null")
    setup = build(made, WORLD)
    states(setup, made, 4)
    averaged = setup.measured(4)
    found = {name: m for name, m in averaged.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    fresh = copy.deepcopy(averaged).train()
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in found}
    for name in found:
        fresh.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen[name].append(
                (inputs[0].transpose(0, 1).flatten(1).mean(1), inputs[0].transpose(0, 1).flatten(1).var(1))
            )
        )
    own = made.model_copy(update={"seed": stream(made.seed, STATISTICS)})
    batches = Batches(setup.batches.clouds, own, accumulate, WORLD.device)
    with torch.no_grad():
        for step in range(2):
            for slot in range(accumulate):
                batch = batches.draw(step, slot)
                batches.seed_model(step, slot)
                fresh(batch.points)
                assert not torch.equal(batch.points, setup.batches.draw(step, slot).points)  # none of training's
    assert len(found) > 1
    for name, norm in found.items():
        assert len(seen[name]) == 2 * accumulate
        for statistic, index in ((norm.running_mean, 0), (norm.running_var, 1)):
            mean = torch.stack([pair[index] for pair in seen[name]]).mean(0)
            torch.testing.assert_close(statistic, mean, rtol=1e-4, atol=1e-5)


def test_gathering_statistics_leaves_training_as_it_was(experiment: MakeExperiment, tmp_path: Path) -> None:
    """Averaging only watches: the live model ends as it does without, and the draws of others go on."""
    for name, average in (("without", "average=null"), ("ema", "average.kind=ema"), ("swa", "average.kind=swa")):
        start = () if name == "without" else ("average.start=0",)
        run(experiment(f"output={tmp_path}/{name}", average, *start))
    contents = [read_checkpoint(tmp_path / name / "checkpoints" / "last.pt") for name in ("without", "ema", "swa")]
    assert ["averaged" in content for content in contents] == [False, True, True]
    for key, value in contents[0]["model"].items():
        assert all(torch.equal(value, other["model"][key]) for other in contents[1:]), key
    made = experiment("average.kind=swa", "average.start=0")
    setup = build(made, WORLD)
    states(setup, made, 2)
    torch.manual_seed(7)
    first = torch.rand(3)
    torch.manual_seed(7)
    setup.measured(2)
    assert torch.equal(torch.rand(3), first)


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_statistics_of_a_frozen_tokenizer_stay(tiny: MakeExperiment, tokenizer: Path, kind: str) -> None:
    """Those of the transformers are the average's own; neither keys in the queue nor a mean of queues comes of it."""
    made = tiny("point_bert", f"tokenizer={tokenizer}", f"average.kind={kind}", "average.start=0")
    setup = build(made, WORLD)
    given = copy.deepcopy(setup.model.dvae.state_dict())
    states(setup, made, 4)
    averaged = setup.measured(4)
    assert all(torch.equal(value, given[key]) for key, value in averaged.dvae.state_dict().items())
    assert all(norm.track_running_stats for norm in averaged.modules() if isinstance(norm, nn.BatchNorm1d))
    assert torch.equal(averaged.queue, setup.model.queue)
    assert averaged._keys == []
    key = "transformer_q.encoder.first_conv.1.running_mean"
    assert not torch.equal(averaged.state_dict()[key], setup.model.state_dict()[key])


@pytest.mark.parametrize(("name", "kind"), [("point_mae", "swa"), ("dvae", "ema"), ("point_mae_segmenter", "swa")])
def test_every_task_can_be_averaged(tiny: MakeExperiment, name: str, kind: str) -> None:
    summary = run(tiny(name, f"average.kind={kind}", "average.start=0"))
    assert summary is not None
    assert summary["average"] == kind


@pytest.mark.parametrize(("kind", "ewa"), [("swa", "ewa=null"), ("ema", "ewa.num_experts=2")])
def test_a_run_reports_its_averaged_weights(
    experiment: MakeExperiment, tmp_path: Path, tool: Callable[..., Any], kind: str, ewa: str
) -> None:
    """The merged files are the average, not the live weights, and the tools measure the same."""
    made = experiment(f"average.kind={kind}", "average.start=0", "train.lr=1e-2", ewa)
    summary = run(made)
    assert summary is not None
    folder = tmp_path / "run" / "checkpoints"
    names = {"last": "", "best": "_best"}
    for name, suffix in names.items():
        content, written = read_checkpoint(folder / f"{name}.pt"), read_checkpoint(folder / f"merged_{name}.pt")
        model = build(made, WORLD).model
        for state, same in (("averaged", True), ("model", False)):
            model.load_state_dict(content[state])
            merged = pc_ewa.dense_state_dict(model)
            assert merged.keys() == written["base_model"].keys()
            equal = all(torch.equal(merged[key], value) for key, value in written["base_model"].items())
            assert equal == (same or summary["best_step"] == 1), (name, state)
        for file in (f"{name}.pt", f"merged_{name}.pt"):
            code, out, err = tool("evaluate", folder / file, "--json", tmp_path / "score.json")
            assert (code, err) == (0, "")
            measured = json.loads((tmp_path / "score.json").read_text())
            assert measured["correct"] == summary[f"test_correct_merged{suffix}"]
            assert (f"note: averaged weights ({kind})" in out) == (file == f"{name}.pt")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"average: {kind}" in log
    assert f"scores are those of the averaged weights ({kind}), once there are any" in log
    if ewa != "ewa=null":
        code, out, err = tool("merge_experts", folder / "last.pt", "-o", tmp_path / "merged.pt")
        assert (code, err) == (0, "")
        one, other = (
            read_checkpoint(path)["base_model"] for path in (tmp_path / "merged.pt", folder / "merged_last.pt")
        )
        assert all(torch.equal(one[key], other[key]) for key in other)


def test_before_averaging_begins_the_live_weights_are_measured(
    tiny: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A best state of before is tested as it was."""
    with monkeypatch.context() as patch:
        Measured(patch, [1.0, 2.0])
        summary = run(tiny("point_mae", "average.kind=ema", "average.start=0.5"))
    assert summary is not None
    assert summary["best_step"] == 2
    folder = tmp_path / "run" / "checkpoints"
    best, last = (read_checkpoint(folder / f"{name}.pt") for name in ("best", "last"))
    assert "averaged" not in best
    assert last["averaged_models"] == 2
    merged = read_checkpoint(folder / "merged_best.pt")["base_model"]
    assert all(torch.equal(value, best["model"][key]) for key, value in merged.items())


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_a_run_resumes_exactly_before_and_after_averaging_begins(
    experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Killed after steps 3 (none counted yet), 5 and 7; every 2 steps end an epoch, every 4 are validated."""
    overrides = (f"average.kind={kind}", "average.start=0.375", "train.steps=8", "train.eval_every=2")
    if kind == "swa":
        overrides += ("average.lr=2e-3",)
    whole, cut = (experiment(*overrides, f"output={tmp_path}/{name}") for name in ("whole", "cut"))
    summary = run(whole)
    assert summary is not None
    for step in (3, 5, 7):
        run_until_saved(step, cut, monkeypatch)
    again = run(cut)
    assert again is not None
    for name in ("last.pt", "best.pt", "merged_last.pt", "merged_best.pt"):
        one, other = (read_checkpoint(tmp_path / run / "checkpoints" / name) for run in ("whole", "cut"))
        for part in ("model", "averaged", "base_model"):
            assert one.get(part, {}).keys() == other.get(part, {}).keys()
            assert all(torch.equal(value, other[part][key]) for key, value in one.get(part, {}).items()), (name, part)
        assert one.get("averaged_models") == other.get("averaged_models")
    ours = ("output", "seconds", "peak_memory")
    assert {k: v for k, v in summary.items() if k not in ours} == {k: v for k, v in again.items() if k not in ours}


def test_swa_trains_at_its_own_rate_from_its_start_on(experiment: MakeExperiment) -> None:
    made = experiment("average.kind=swa", "average.start=0.5", "average.lr=0.25")
    rates, schedule = build(made, WORLD).learning_rate, build(experiment(), WORLD).learning_rate
    assert [rates(step) for step in range(4)] == [schedule(0), schedule(1), 0.25, 0.25]
    kept = build(experiment("average.kind=swa", "average.start=0.5"), WORLD).learning_rate
    assert [kept(step) for step in range(4)] == [schedule(step) for step in range(4)]


def test_a_start_after_the_last_epoch_is_refused(experiment: MakeExperiment, tmp_path: Path) -> None:
    """5 steps are 2 epochs and a half: after 4 steps none ends any more."""
    with pytest.raises(ConfigError) as caught:
        run(experiment("average.kind=swa", "average.start=0.9", "train.steps=5"))
    assert str(caught.value) == (
        "average.start=0.9: after 4 of 5 steps comes no end of an epoch of 2 steps: nothing would be averaged; "
        "lower it or train longer"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("decay", "told"), [(0.9, True), (0.0, False)])
def test_an_ema_that_remembers_too_much_is_told(experiment: MakeExperiment, decay: float, told: bool) -> None:
    """Of 4 steps: at 0.9 the average would still be mostly the first weights."""
    notes = build(experiment(f"average.decay={decay}"), WORLD).notes
    hint = "it remembers 10 of 4 steps, early ones too: lower average.decay"
    assert any(hint in note for note in notes) is told
