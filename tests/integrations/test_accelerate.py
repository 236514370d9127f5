"""EWA in a loop with accelerate."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pc_ewa.errors import ConfigError, TrainingError
from pc_ewa.ewa import ExpertAverager, expert_layers, merge_experts, upcycle

pytest.importorskip("accelerate")
from accelerate import Accelerator
from safetensors.torch import load_file

from pc_ewa.integrations.accelerate import attach_averager, log_values, save_merged

STEPS = 6


class Loop:
    """One training: 12 samples in batches of 2, two batches to a step."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = nn.Sequential(nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.Linear(12, 6)), nn.Linear(6, 1))
        upcycle(model, 3, "all")
        data = TensorDataset(torch.randn(12, 5, 6), torch.randn(12, 5, 1))
        prepared = self.accelerator.prepare(model, torch.optim.AdamW(model.parameters(), 0.01), DataLoader(data, 2))
        self.model, self.optimizer, self.loader = prepared
        self.averager = attach_averager(self.accelerator, self.model, self.optimizer, STEPS, share_rate=0.6)
        self.rates: list[float] = []

    def epoch(self) -> None:
        for x, y in self.loader:
            with self.accelerator.accumulate(self.model):
                self.accelerator.backward((self.model(x) - y).square().mean())
                self.optimizer.step()
                self.optimizer.zero_grad()
            if self.accelerator.sync_gradients:
                self.rates.append(log_values(self.averager)["ewa_share_rate"])


def test_accumulated_and_resumed_in_mid_ramp_to_the_bit(tmp_path: Path) -> None:
    whole = Loop()
    whole.epoch()
    whole.accelerator.save_state(str(tmp_path))
    whole.epoch()
    again = Loop()
    torch.rand(7)
    again.accelerator.load_state(str(tmp_path))
    again.epoch()
    assert whole.rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert again.rates == whole.rates[3:]
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))


def test_merged_weights_are_saved_and_the_model_trains_on(tmp_path: Path) -> None:
    loop = Loop()
    loop.epoch()
    save_merged(loop.accelerator, loop.model, str(tmp_path))
    merged = merge_experts(copy.deepcopy(loop.model)).state_dict()
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == merged.keys()
    assert all(torch.equal(saved[key], value) for key, value in merged.items())
    loop.epoch()
    assert loop.averager.steps_done == STEPS
    assert log_values(loop.averager)["ewa_spread"] > 0


def test_what_cannot_be_attached_is_refused_in_one_line() -> None:
    loop = Loop()
    accelerator, model, optimizer = loop.accelerator, loop.model, loop.optimizer
    with pytest.raises(ValueError, match="another averager"):
        attach_averager(accelerator, model, optimizer, STEPS)
    with pytest.raises(ConfigError, match=r"'share'.*'share_rate'"):
        attach_averager(accelerator, model, optimizer, STEPS, share=0.1)
    with pytest.raises(ConfigError, match="'num_experts'"):
        attach_averager(accelerator, model, optimizer, STEPS, num_experts=2)
    with pytest.raises(TrainingError, match="no experts"):
        attach_averager(accelerator, nn.Linear(2, 2), optimizer, STEPS)


def test_the_averager_alone_does_it_too(tmp_path: Path) -> None:
    """Attached before `prepare` to what is wrapped later, and registered by hand."""
    accelerator = Accelerator(cpu=True)
    model = upcycle(nn.Sequential(nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))), 2, "all")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    averager = ExpertAverager(model, 0.3, "constant").attach(optimizer)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(averager)
    accelerator.backward(model(torch.randn(3, 6)).sum())
    optimizer.step()
    accelerator.save_state(str(tmp_path))
    averager.steps_done = 0
    accelerator.load_state(str(tmp_path))
    assert averager.steps_done == 1
    assert len(expert_layers(model)) == 1
