"""Pre-training that is cut off, or done by two processes, ends as the undisturbed run does."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cut_off import run_until_saved
from torch import Tensor
from two_processes import train_in_two

from pc_ewa.config import Experiment
from pc_ewa.models.checkpoints.read import read_checkpoint
from pc_ewa.models.dvae import DiscreteVAE
from pc_ewa.train import run
from pc_ewa.train.distributed import World
from pc_ewa.train.setup import build

WORLD = World(0, 1, torch.device("cpu"))
MakeExperiment = Callable[..., Experiment]
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def tensors(content: object, place: str = "") -> dict[str, object]:
    """Flatten a checkpoint to its leaves, so that two can be compared key by key."""
    if isinstance(content, dict | list):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        return {k: v for name, value in items for k, v in tensors(value, f"{place}/{name}").items()}
    return {place: content}


def assert_same_checkpoints(one: Path, other: Path, names: tuple[str, ...]) -> None:
    """Bit for bit, but for the time that was spent and where it was written."""
    for name in names:
        first, second = (tensors(read_checkpoint(folder / "checkpoints" / name)) for folder in (one, other))
        assert first.keys() == second.keys()
        for key, value in first.items():
            if key not in ("/progress/seconds", "/progress/peak_memory", "/config/output"):
                same = torch.equal(value, second[key]) if isinstance(value, Tensor) else value == second[key]
                assert same, (name, key)


# Learning, and what comes of it.


VARIANTS = {
    "point_bert": ("point_bert", ("ewa.num_experts=2",)),
    # Here the tokenizer's BatchNorm changes, and is part of the state too.
    "point_bert, official": ("point_bert", ("model.live_tokenizer=true", "model.moco_loss=true", "train.accumulate=2")),
    "dvae": ("dvae", ("model.temperature_steps=4", "model.kl_start=1", "model.kl_steps=3", "model.kl_weight=1.0")),
}


@pytest.mark.parametrize(("model", "overrides"), VARIANTS.values(), ids=VARIANTS)
def test_stopped_after_any_checkpoint_a_run_ends_the_same(
    tiny: MakeExperiment,
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    overrides: tuple[str, ...],
) -> None:
    own = (f"tokenizer={tokenizer}",) if model == "point_bert" else ()
    own = ("train.steps=3", *own)
    whole = run(tiny(model, *overrides, *own, f"output={tmp_path}/whole"))
    assert whole is not None
    for step in (1, 2) if len(overrides) == 1 else (2,):  # one variant after any checkpoint
        cut = tiny(model, *overrides, *own, f"output={tmp_path}/cut{step}")
        run_until_saved(step, cut, monkeypatch)
        torch.manual_seed(step)  # what else the process draws plays no part
        again = run(cut)
        assert again is not None
        assert_same_checkpoints(tmp_path / f"cut{step}", tmp_path / "whole", ("last.pt", "best.pt", "merged_last.pt"))
        unequal = {"seconds": 0, "peak_memory": 0, "output": 0}
        assert again | unequal == whole | unequal
    if model == "point_bert":
        start = build(cut, WORLD).model.state_dict()
        end = read_checkpoint(tmp_path / "whole" / "checkpoints" / "last.pt")["model"]
        assert end["queue_ptr"].tolist() == [3 * 8 % 16]  # around once
        changed = {key.partition(".")[0] for key in start if not torch.equal(start[key], end[key])}
        live = {"dvae"} if "model.live_tokenizer=true" in overrides else set()
        assert changed == {"queue", "queue_ptr", "transformer_q", "transformer_k"} | live


def test_the_schedule_of_the_dvae_follows_the_steps_that_are_done(
    tiny: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    temperature_at = DiscreteVAE.temperature_at
    monkeypatch.setattr(DiscreteVAE, "temperature_at", lambda self, n: asked.append(n) or temperature_at(self, n))
    run_until_saved(2, tiny("dvae"), monkeypatch)
    assert asked == [0, 1]
    run(tiny("dvae"))
    assert asked == [0, 1, 2, 3]  # evaluation asks for none: it takes the likeliest word


# Two processes.


@pytest.mark.slow
def test_two_processes_equal_one_that_accumulates(
    tiny: MakeExperiment, tiny_configs: dict[str, Path], tokenizer: Path, tmp_path: Path
) -> None:
    """Weights, momentum encoder and queue, to the last bit; keys are in the order of the ranks, as parts of a batch.

    The running statistics of the trained batch norms differ: one process sees both halves in turn, two see one each.
    In training they are not used, so that nothing else follows from that; those of the tokenizer stay as they are.
    """
    overrides = [f"tokenizer={tokenizer}", "train.steps=3", "ewa.num_experts=2", "model.moco_loss=true"]
    done = train_in_two(tiny_configs["point_bert"], f"output={tmp_path}/two", *overrides)
    assert done.code == 0, done.err
    assert done.out.count("step 3/3 (epoch 1.5): validation ") == 1  # one of them prints
    summary = run(tiny("point_bert", f"output={tmp_path}/one", "train.accumulate=2", *overrides))
    assert summary is not None
    one, two = (read_checkpoint(tmp_path / name / "checkpoints" / "last.pt")["model"] for name in ("one", "two"))
    assert one["queue_ptr"].tolist() == [8]
    assert torch.equal(one["queue"], two["queue"])
    for key in one:
        if key.startswith("dvae.") or not key.endswith(STATISTICS):
            assert torch.equal(one[key], two[key]), key
    for name in ("transformer_q", "transformer_k"):
        assert not torch.equal(*(state[f"{name}.encoder.first_conv.1.running_mean"] for state in (one, two)))
    # Every shape was measured once; the mean is over all of them, whoever measured them.
    other = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert (other["test_samples"], other["val_samples"]) == (12, 3)
    assert other["test_token_accuracy_merged"] == pytest.approx(summary["test_token_accuracy_merged"], abs=0.1)
