"""Gated mixtures in training: what is added to the loss, and what becomes of a model that keeps its experts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from run_folder import metrics

from pc_ewa.config import Experiment
from pc_ewa.errors import ConfigError
from pc_ewa.ewa import GatedFFN, has_gate
from pc_ewa.models.checkpoints.read import read_checkpoint
from pc_ewa.models.checkpoints.write import save_weights
from pc_ewa.train import run
from pc_ewa.train.distributed import World
from pc_ewa.train.loop import train_step
from pc_ewa.train.restore import restore
from pc_ewa.train.setup import build

WORLD = World(0, 1, torch.device("cpu"))
MakeExperiment = Callable[..., Experiment]
MIXTURE = "blocks.blocks.1.mlp"


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_gradient_is_that_of_loss_and_balance_loss(
    experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    """Each part of a batch has its own balance loss, and weighs as much as the others."""
    made = experiment("ewa.gate.balance_weight=0.5", f"train.accumulate={accumulate}", "train.clip_grad=null")
    setup, twin = build(made, WORLD), build(made, WORLD)
    monkeypatch.setattr(setup.optimizer, "zero_grad", lambda **_: None)
    figures = train_step(setup, made, WORLD, setup.model, 0)
    total = 0.0
    for slot in range(accumulate):
        points, labels, _ = twin.batches.draw(0, slot)
        twin.batches.seed_model(0, slot)
        inputs: list[torch.Tensor] = []
        mixture = twin.model.get_submodule(MIXTURE)
        assert isinstance(mixture, GatedFFN)
        hook = mixture.register_forward_pre_hook(lambda _, given, inputs=inputs: inputs.append(given[0]))
        loss = F.cross_entropy(twin.model(points), labels)
        hook.remove()
        probabilities = (inputs[0].flatten(0, -2) @ mixture.gate.weight.T).softmax(1)
        shares = torch.stack([(probabilities.argmax(1) == expert).float().mean() for expert in range(2)])
        balance = 0.5 * 2 * (shares * probabilities.mean(0)).sum()
        ((loss + balance) / accumulate).backward()
        total += balance.item() / accumulate
    assert figures["balance_loss"].item() == pytest.approx(total, rel=1e-6)
    for name in (f"{MIXTURE}.gate.weight", f"{MIXTURE}.experts.fc1.weight", "blocks.blocks.0.mlp.fc1.weight"):
        mine, theirs = setup.model.get_parameter(name).grad, twin.model.get_parameter(name).grad
        assert mine is not None
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_without_a_gate_there_is_no_balance_loss(experiment: MakeExperiment, trained: Any) -> None:
    made = experiment()
    setup = build(made, WORLD)
    assert "balance_loss" not in train_step(setup, made, WORLD, setup.model, 0)
    assert not has_gate(setup.model)
    assert trained.summary["gated"] is False


@pytest.fixture
def finished(experiment: MakeExperiment, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoints and the summary of a run with gates, whose experts are averaged too."""
    summary = run(experiment("ewa.gate.capacity_factor=2", "train.lr=1e-2"))
    assert summary is not None
    return tmp_path / "run" / "checkpoints", summary


def test_a_gated_model_is_kept_and_measured_as_it_is(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, tool: Callable[..., Any]
) -> None:
    folder, summary = finished
    assert (summary["gated"], summary["mixtures"]) == (True, 1)
    # One of two FFNs is a mixture of 2; the gate maps 16 channels to 2 experts.
    content = read_checkpoint(folder / "last.pt")
    assert summary["params_training"] == summary["params_merged"]
    assert content["model"][f"{MIXTURE}.gate.weight"].shape == (2, 16)
    assert (summary["ffns_training"], summary["ffns_merged"]) == (3, 3)
    figures = {name: value for name, value in summary.items() if name.startswith("test_") and "unmerged" in name}
    assert len(figures) > 3
    assert all(summary[name.replace("unmerged", "merged")] == value for name, value in figures.items())
    for which, suffix in (("last", ""), ("best", "_best")):
        kept = read_checkpoint(folder / f"merged_{which}.pt")
        state = read_checkpoint(folder / f"{which}.pt")["model"]
        assert kept["model"].keys() == state.keys()
        assert all(torch.equal(value, kept["model"][key]) for key, value in state.items())
        assert "base_model" not in kept  # where the official code would look
        for name in (f"merged_{which}.pt", f"{which}.pt"):
            assert has_gate(restore(folder / name).model)
            code, _, err = tool("evaluate", folder / name, "--json", tmp_path / "score.json")
            assert (code, err) == (0, "")
            measured = json.loads((tmp_path / "score.json").read_text())
            assert measured["correct"] == summary[f"test_correct_merged{suffix}"]
    assert all(line["balance_loss"] > 0 for line in metrics(tmp_path / "run") if "loss" in line)


def test_the_report_of_a_gated_model_promises_nothing(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    log = (tmp_path / "run" / "log.txt").read_text()
    header = next(line for line in log.splitlines() if "kept as MoE" in line)
    assert header.split() == ["as", "trained", "kept", "as", "MoE"]
    assert "merged_last.pt   # accuracy" in log
    assert "ewa=null output=" in log
    assert "# the same run without experts" in log


def test_gated_experts_are_not_merged(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, tool: Callable[..., Any], toy_config: Path
) -> None:
    folder, _ = finished
    output = tmp_path / "merged.pt"
    for name in ("last.pt", "merged_last.pt"):
        for more in ((), ("--split", "test"), ("--format", "official")):
            code, out, err = tool("merge_experts", folder / name, "-o", output, *more)
            assert (code, out, err.count("\n")) == (2, "", 1)
            assert err.startswith("error: its mixtures are gated: each token needs its own expert at inference too")
    assert not output.exists()
    restored = restore(folder / "last.pt")
    with pytest.raises(ValueError, match="for which neither the official layout nor the code of others has a place"):
        save_weights(restored.model, output, "safetensors", {}, [], {})
    code, _, err = tool("finetune", toy_config, "--from", folder / "merged_last.pt", f"output={tmp_path}/other")
    assert code == 2
    assert "it holds gated mixtures of experts, which do not merge; start from a file made without a gate" in err


def test_a_gated_model_can_be_averaged(experiment: MakeExperiment, tmp_path: Path) -> None:
    made = experiment("ewa.gate.balance_weight=0.1", "average.kind=ema", "train.lr=1e-2")
    assert run(made) is not None
    folder = tmp_path / "run" / "checkpoints"
    last, kept = read_checkpoint(folder / "last.pt"), read_checkpoint(folder / "merged_last.pt")
    assert all(torch.equal(value, kept["model"][key]) for key, value in last["averaged"].items())
    assert not torch.equal(last["model"][f"{MIXTURE}.gate.weight"], kept["model"][f"{MIXTURE}.gate.weight"])


def test_pretraining_takes_gates(tiny: MakeExperiment, tmp_path: Path) -> None:
    """And the report does not advise to start from what nothing can start from."""
    summary = run(tiny("point_mae", "ewa.num_experts=2", "ewa.gate.balance_weight=0.01"))
    assert summary is not None
    assert summary["test_loss_merged"] == summary["test_loss_unmerged"]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "--protocol svm" in log
    assert "tools/finetune.py" not in log


def test_point_bert_takes_no_gate(tiny: MakeExperiment, tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^ewa\.gate with model\.name=point_bert: .*; set ewa\.gate=null$"):
        run(tiny("point_bert", f"tokenizer={tokenizer}", "ewa.num_experts=2", "ewa.gate.balance_weight=0.01"))
    assert not (tmp_path / "run").exists()
