"""Pre-training: what is learned, what it leaves for fine-tuning, and what only watches it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folder import Measured, metrics

from pc_ewa.config import Experiment
from pc_ewa.errors import ConfigError, Error
from pc_ewa.ewa import expert_layers
from pc_ewa.models.checkpoints.read import read_checkpoint
from pc_ewa.train import loop, run
from pc_ewa.train.distributed import World
from pc_ewa.train.loop import train_step
from pc_ewa.train.setup import build

WORLD = World(0, 1, torch.device("cpu"))
MakeExperiment = Callable[..., Experiment]


@pytest.mark.parametrize("ewa", ["ewa=null", "ewa.num_experts=2"], ids=["dense", "ewa"])
def test_point_mae_learns_to_predict_hidden_patches(tiny: MakeExperiment, tmp_path: Path, ewa: str) -> None:
    easy = ("augment.scale=null", "augment.shift=0", "model.drop_path=0")
    rare = ("train.eval_every=20", "train.save_every=40", "train.lr=5e-3")
    summary = run(tiny("point_mae", "train.steps=40", *easy, *rare, ewa))
    assert summary is not None
    losses = [line["loss"] for line in metrics(tmp_path / "run") if "loss" in line]
    assert losses[-1] < 0.4 * losses[0]
    assert summary["main_metric"] == "loss"
    # Measured on shapes it has not seen, and as good there: it learned, by no more than noise.
    assert summary["test_loss_merged"] < 0.5 * losses[0]
    assert summary["val_loss"] == pytest.approx(summary["test_loss_merged"], rel=0.5)
    assert summary["val_loss_best"] <= summary["val_loss"]
    assert summary["test_samples"] == 12
    if ewa == "ewa=null":
        assert summary["test_loss_unmerged"] == summary["test_loss_merged"]
    else:
        assert summary["mixtures"] == 1
        assert summary["params_training"] - summary["params_merged"] == 2 * 16 * 64 + 64 + 16
        assert (summary["ffns_training"], summary["ffns_merged"]) == (3, 2)  # the decoder's are not counted
        assert abs(summary["test_loss_unmerged"] - summary["test_loss_merged"]) < summary["test_loss_merged"]
        spreads = [v for line in metrics(tmp_path / "run") for k, v in line.items() if k.endswith("/spread")]
        assert min(spreads) > 0


def test_the_lowest_loss_is_the_best_not_the_highest(tiny: MakeExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    Measured(monkeypatch, [3.0, 1.0, 2.0])
    summary = run(tiny("point_mae", "train.steps=6"))
    assert summary is not None
    assert (summary["best_step"], summary["val_loss_best"], summary["val_loss"]) == (4, 1.0, 2.0)


def test_the_report_of_a_pretraining_names_its_loss_and_what_comes_next(
    tiny: MakeExperiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tiny("point_mae", "ewa.num_experts=2"))
    printed = capsys.readouterr().out
    for part in ("test loss, last step", "validation loss: ", "merged_last.pt --protocol svm", "with experts"):
        assert part in printed
    assert "accuracy" not in printed.partition("with experts")[2]


BERT = "dim: 16, depth: 2, num_heads: 2, num_groups: 8, group_size: 8, encoder_dim: 8, encoder_width: 8"


@pytest.mark.parametrize(
    ("pretrained", "classifier", "told"),
    [
        (
            "point_mae",
            "model.name=point_mae_classifier",
            ("cls_head_finetune", "cls_pos", "cls_token", "MAE_decoder", "increase_dim", "mask_token"),
        ),
        (
            "point_bert",
            f"model={{name: point_bert_classifier, {BERT}}}",
            ("cls_head_finetune", "lm_head", "mask_token", "transformer_k", "dvae", "queue"),
        ),
    ],
    ids=["point_mae", "point_bert"],
)
def test_what_was_pretrained_is_where_fine_tuning_starts(
    tiny: MakeExperiment,
    experiment: MakeExperiment,
    tokenizer: Path,
    tmp_path: Path,
    pretrained: str,
    classifier: str,
    told: tuple[str, ...],
) -> None:
    """The encoder of the merged file, tensor by tensor; the experts of the classifier are copies of its FFNs.

    What is missing and what has no place is told.
    """
    own = (f"tokenizer={tokenizer}",) if pretrained == "point_bert" else ()
    run(tiny(pretrained, "train.steps=2", "ewa.num_experts=3", *own))
    weights = tmp_path / "run" / "checkpoints" / "merged_last.pt"
    file = read_checkpoint(weights)["base_model"]
    assert not any(".experts." in key for key in file)
    setup = build(experiment(classifier, "ewa.num_experts=4", f"init_from={weights}"), WORLD)
    (note,) = (note for note in setup.notes if note.startswith(f"weights: {weights}"))
    assert all(part in note for part in told), note
    prefix = {"point_mae": "MAE_encoder.", "point_bert": "transformer_q."}[pretrained]
    compared = 0
    for name, value in setup.model.state_dict().items():
        name = name.replace(".experts.", ".")
        if f"{prefix}{name}" in file:
            there = file[f"{prefix}{name}"]
            experts = value if value.dim() > there.dim() else [value]
            assert all(torch.equal(expert, there) for expert in experts), name
            compared += 1
    assert compared > 40
    assert [mixture.num_experts for mixture in expert_layers(setup.model).values()] == [4]


def test_point_bert_starts_from_the_encoder_of_its_tokenizer(
    tiny: MakeExperiment, tokenizer: Path, tmp_path: Path
) -> None:
    setup = build(tiny("point_bert", f"tokenizer={tokenizer}", "ewa.num_experts=2"), WORLD)
    file = read_checkpoint(tokenizer)["base_model"]
    assert f"tokenizer: {tokenizer}: {len(file)} tensors loaded" in setup.notes
    state = setup.model.state_dict()
    for key, value in file.items():
        assert torch.equal(state[f"dvae.{key}"], value)
        if key.startswith("encoder."):
            assert torch.equal(state[f"transformer_q.{key}"], value)
            assert torch.equal(state[f"transformer_k.{key}"], value)
    trained = {id(p) for group in setup.optimizer.param_groups for p in group["params"]}
    names = {name.partition(".")[0] for name, p in setup.model.named_parameters() if id(p) in trained}
    assert names == {"transformer_q"}


def test_point_bert_goes_on_from_its_own_file_without_a_tokenizer(
    tiny: MakeExperiment, tokenizer: Path, tmp_path: Path
) -> None:
    run(tiny("point_bert", f"tokenizer={tokenizer}", "train.steps=2"))
    weights = tmp_path / "run" / "checkpoints" / "merged_last.pt"
    model = build(tiny("point_bert", f"init_from={weights}"), WORLD).model
    file = read_checkpoint(weights)["base_model"]
    assert all(torch.equal(value, file[key]) for key, value in model.state_dict().items())


# What cannot be is refused in one line, before anything is written.

REFUSED = {
    "no tokenizer": ("point_bert", (), "tokenizer is missing: point_bert predicts the tokens of a trained dvae; train"),
    "tokenizer that is none": ("point_bert", ("tokenizer={other}",), "does not fit DiscreteVAE: "),
    "tokenizer of another size": ("point_bert", ("tokenizer={tokenizer}", "model.tokens_dim=16"), "does not fit Discr"),
    "tokenizer that is not there": ("point_bert", ("tokenizer=none.pt",), "tokenizer=none.pt is not a file"),
    "tokenizer for another": ("point_mae", ("tokenizer={tokenizer}",), "model.name=point_mae"),
    "experts in the dvae": (
        "dvae",
        ("ewa.num_experts=2",),
        "ewa with model.name=dvae, which has no FFN for experts; set ewa=null",
    ),
    "another task": (
        "point_mae",
        ("task=classify",),
        "task=classify with model.name=point_mae, which is made to pretr",
    ),
    "probe of the dvae": (
        "dvae",
        ("probe.data={data}",),
        "probe with model.name=dvae, which has no features; set probe",
    ),
    "probe without validation": (
        "point_mae",
        ("probe.data={data}", "probe.data.val_fraction=0"),
        "probe.data.val_fraction=0; the probe is measured on a validation part while training",
    ),
    "probe of small clouds": (
        "point_mae",
        ("probe.data={data}", "probe.data.num_points=7"),
        "model.group_size=8 is above probe.data.num_points=7; lower it",
    ),
    "probe of larger clouds than there are": (
        "point_mae",
        ("probe.data={data}", "probe.data.num_points=65"),
        "hdf5 has clouds of 64 points; data.num_points=65 is above that",
    ),
    "short queue": (
        "point_bert",
        ("tokenizer={tokenizer}", "model.queue_size=7"),
        "model.queue_size=7 is below train.batch_size=8, the keys of one step; raise it",
    ),
}


@pytest.mark.parametrize(("model", "overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_before_training(
    tiny: MakeExperiment,
    trained: Any,
    tokenizer: Path,
    toy_file: Path,
    tmp_path: Path,
    model: str,
    overrides: tuple[str, ...],
    message: str,
) -> None:
    data = f"{{name: hdf5, path: {toy_file}, num_points: 48}}"
    names = {"tokenizer": tokenizer, "other": trained.folder / "checkpoints" / "merged_last.pt", "data": data}
    filled = [override.format_map(names) for override in overrides]
    with pytest.raises(Error) as caught:
        run(tiny(model, *filled))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_the_queue_and_the_momentum_encoder_move_once_a_step(tiny: MakeExperiment, tokenizer: Path) -> None:
    """By hand: keys of both parts in their order, and 0.9 of the old weights with 0.1 of the mean of the experts."""
    made = tiny("point_bert", f"tokenizer={tokenizer}", "ewa.num_experts=2", "train.accumulate=2", "model.momentum=0.9")
    setup = build(made, WORLD)
    model, keys = setup.model, []
    make_keys = model._make_keys
    model._make_keys = lambda *arguments: keys.append(make_keys(*arguments)) or keys[-1]
    before = {name: value.clone() for name, value in model.transformer_k.state_dict().items()}
    train_step(setup, made, WORLD, model, 0)
    assert [len(key) for key in keys] == [4, 4]
    assert torch.equal(model.queue[:, :8], torch.cat(keys).T)
    assert model.queue_ptr.tolist() == [8]
    experts = model.transformer_q.get_parameter("blocks.blocks.1.mlp.experts.fc1.weight")
    expected = 0.9 * before["blocks.blocks.1.mlp.fc1.weight"] + 0.1 * experts.detach().mean(0)
    torch.testing.assert_close(model.transformer_k.get_parameter("blocks.blocks.1.mlp.fc1.weight"), expected)


def test_no_gradient_of_pretraining_is_left_out(tiny: MakeExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun a parameter without a gradient would be an error."""
    for model in ("point_mae", "dvae"):
        made = tiny(model)
        setup = build(made, WORLD)
        with monkeypatch.context() as patch:
            patch.setattr(setup.optimizer, "zero_grad", lambda **_: None)
            figures = loop.train_step(setup, made, WORLD, setup.model, 0)
        assert figures["loss"].isfinite()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in setup.model.parameters()), model


def test_labels_are_not_looked_at(tiny: MakeExperiment) -> None:
    with pytest.raises(ConfigError, match="no validation part"):
        build(tiny("dvae", "data.val_fraction=0"), WORLD).splits.named("val")
    assert build(tiny("dvae"), WORLD).model_arguments == {}
