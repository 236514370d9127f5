"""recipe=official: what the official code does by accident, and that recipe=ours does none of it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from pc_ewa.config import Experiment, Train, dump, resolve
from pc_ewa.data import Clouds, load_dataset
from pc_ewa.errors import ConfigError
from pc_ewa.train import run
from pc_ewa.train.batches import Batches
from pc_ewa.train.distributed import World
from pc_ewa.train.loop import train_step
from pc_ewa.train.optim import learning_rate, official_learning_rate
from pc_ewa.train.setup import Setup, build

CPU = torch.device("cpu")
WORLD = World(0, 1, CPU)
MakeExperiment = Callable[..., Experiment]
# The steps of the toy experiment are in the way of a recipe that counts epochs.
OFFICIAL, OURS = (("train.steps=null", "train.epochs=3", f"recipe={recipe}") for recipe in ("official", "ours"))

# Epoch, and the rate that the official code trains it with: lr 5e-4, 10 of 300 epochs to warm up.
RATES = {
    0: 1e-6,
    1: 1e-6,
    2: 5.09e-5,
    10: 4.501e-4,
    11: 4.98633e-4,
    150: 2.53113e-4,
    300: 1.01368e-6,
}


@pytest.mark.parametrize(("epoch", "rate"), RATES.items())
def test_the_rate_of_an_epoch_is_that_of_the_one_before(epoch: int, rate: float) -> None:
    train = Train(lr=5e-4, epochs=300)
    assert (train.min_lr, round(train.warmup * train.epochs)) == (1e-6, 10)
    for step in (0, 1, 306):  # the same from the first to the last step of an epoch
        assert official_learning_rate(307 * epoch + step, 307, train) == pytest.approx(rate, rel=2e-5)


def test_few_shot_warms_up_as_long() -> None:
    train = Train(lr=5e-4, epochs=150, warmup=0.0667)
    assert official_learning_rate(2 * 2, 2, train) == pytest.approx(5.09e-5)
    assert official_learning_rate(2 * 10, 2, train) == pytest.approx(4.501e-4)
    # The cosine has been going on since epoch 0: no step of the rate back to its peak where it takes over.
    assert official_learning_rate(2 * 11, 2, train) < 4.95e-4


def rates_of(setup: Setup, made: Experiment) -> list[float]:
    """Rates that the optimizer really steps with."""
    used = []
    for step in range(setup.total_steps):
        train_step(setup, made, WORLD, setup.model, step)
        used.append(setup.optimizer.param_groups[0]["lr"])
        assert all(group["lr"] == used[-1] for group in setup.optimizer.param_groups)
    return used


def test_a_run_has_one_epoch_too_many_and_these_rates(experiment: MakeExperiment) -> None:
    how = ("train.warmup=0.34", "train.lr=1e-3", "train.min_lr=0")  # one epoch of three warms up
    made, ours = experiment(*OFFICIAL, *how), experiment(*OURS, *how)
    setup = build(made, WORLD)
    assert (setup.total_steps, setup.batches.steps_per_epoch) == (8, 2)
    assert rates_of(setup, made) == pytest.approx([0, 0, 0, 0, 7.5e-4, 7.5e-4, 2.5e-4, 2.5e-4])
    setup = build(ours, WORLD)
    assert setup.total_steps == 6
    assert rates_of(setup, ours) == [learning_rate(step, 6, ours.train) for step in range(6)]


def test_a_run_goes_to_its_end(experiment: MakeExperiment, tmp_path: Path) -> None:
    summary = run(experiment(*OFFICIAL))
    assert summary is not None
    assert summary["steps"] == 8
    plan = "plan: 8 steps of 8 samples (4 epochs, one more than asked"
    assert plan in (tmp_path / "run" / "log.txt").read_text()


@pytest.fixture
def same(toy_file: Path) -> Clouds:
    """One shape 24 times, so that only draws can differ."""
    return load_dataset("hdf5", "train", path=toy_file).select([0] * 24)


def drawn(clouds: Clouds, made: Experiment) -> list[Tensor]:
    batches = Batches(clouds, made, 2, CPU)
    return [batches.draw(step, slot).points for step in range(2) for slot in range(2)]


def distinct(points: Tensor) -> int:
    return len({sample.numpy().tobytes() for sample in points})


PLAIN = ("augment.scale=null", "augment.shift=0")


def test_one_draw_of_points_serves_a_whole_batch(experiment: MakeExperiment, same: Clouds) -> None:
    official, ours = drawn(same, experiment(*OFFICIAL, *PLAIN)), drawn(same, experiment(*OURS, *PLAIN))
    assert [distinct(points) for points in official] == [1] * 4
    assert distinct(torch.cat(official)) == 4  # another one for each batch
    assert distinct(torch.cat(ours)) == 16


def test_augmentation_and_random_points_are_drawn_for_each_shape_all_the_same(
    experiment: MakeExperiment, same: Clouds
) -> None:
    """The official dataset draws random points shape by shape, and each is moved on its own."""
    assert distinct(torch.cat(drawn(same, experiment(*OFFICIAL)))) == 16
    assert distinct(torch.cat(drawn(same, experiment(*OFFICIAL, *PLAIN, "data.sampling=random")))) == 16


@pytest.mark.parametrize(("recipe", "decayed"), [(OFFICIAL, True), (OURS, False)], ids=["official", "ours"])
def test_cls_pos_decays_and_cls_token_does_not(
    experiment: MakeExperiment, recipe: tuple[str, ...], decayed: bool
) -> None:
    setup = build(experiment(*recipe), WORLD)
    names = {id(parameter): name for name, parameter in setup.model.named_parameters()}
    groups = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in setup.optimizer.param_groups}
    assert ("cls_pos" in groups[0.05]) == decayed
    assert ("cls_pos" in groups[0.0]) != decayed
    assert "cls_token" in groups[0.0]
    assert "blocks.blocks.1.mlp.experts.fc1.bias" in groups[0.0]


def test_the_tokenizer_of_point_bert_is_live(tiny: MakeExperiment, tokenizer: Path) -> None:
    def live(*overrides: str) -> object:
        return tiny("point_bert", f"tokenizer={tokenizer}", *overrides).model.arguments["live_tokenizer"]

    assert (live(*OFFICIAL), live(*OURS), live()) == (True, False, False)
    assert live(*OFFICIAL, "model.live_tokenizer=false") is False
    assert live(*OURS, "model.live_tokenizer=true") is True
    for recipe, changes in ((OFFICIAL, True), (OURS, False)):
        made = tiny("point_bert", f"tokenizer={tokenizer}", *recipe)
        setup = build(made, WORLD)
        before = {name: buffer.clone() for name, buffer in setup.model.dvae.named_buffers()}
        train_step(setup, made, WORLD, setup.model, 0)
        after = dict(setup.model.dvae.named_buffers())
        assert any(not torch.equal(after[name], before[name]) for name in before) == changes


def test_other_models_have_no_tokenizer_to_keep_live(experiment: MakeExperiment, tiny: MakeExperiment) -> None:
    for made in (experiment(*OFFICIAL), tiny("point_mae", *OFFICIAL), tiny("dvae", *OFFICIAL)):
        assert "live_tokenizer" not in made.model.arguments


def test_steps_are_refused(experiment: MakeExperiment) -> None:
    message = r"^train\.steps=4 with recipe=official, which counts epochs; set train\.epochs$"
    with pytest.raises(ConfigError, match=message):
        experiment("recipe=official")
    with pytest.raises(ConfigError, match="recipe='theirs': should be 'ours' or 'official'"):
        experiment("recipe=theirs")


def test_the_dump_resolves_to_the_same_experiment(tiny: MakeExperiment, tokenizer: Path) -> None:
    made = tiny("point_bert", f"tokenizer={tokenizer}", *OFFICIAL)
    assert resolve(yaml.safe_load(dump(made))) == made
