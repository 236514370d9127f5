"""EWA in a real Lightning Trainer."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pc_ewa.errors import ConfigError, TrainingError
from pc_ewa.ewa import expert_layers, merge_experts, upcycle

pytest.importorskip("lightning")
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from pc_ewa.integrations.lightning import EWACallback


class Net(LightningModule):
    """Two residual FFNs, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.ffns = nn.ModuleList(nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6)) for _ in range(2))
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        for ffn in self.ffns:
            x = x + ffn(x)
        return self.head(x).mean(1)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, y = batch
        return (self(x) - y).square().mean()

    test_step = training_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-2)


def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(12, 5, 6, generator=generator), torch.randn(12, 1, generator=generator))
    return DataLoader(data, batch_size=4, shuffle=True)


def fit(folder: Path, *callbacks: Callback, epochs: int = 2, ckpt: Path | None = None, **options: Any) -> Trainer:
    options = {"logger": False, "enable_checkpointing": False, "module": None} | options
    module = options.pop("module") or Net()
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=list(callbacks), default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(module, loader(), ckpt_path=ckpt, weights_only=False)
    return trainer


class Watch(Callback):
    """Notes the share rate after each step, and saves a checkpoint at the end of an epoch."""

    def __init__(self, ewa: EWACallback, save: Path | None = None) -> None:
        self.ewa, self.save, self.rates = ewa, save, []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        assert self.ewa.averager
        self.rates.append(self.ewa.averager.statistics()["ffns.1"].share_rate)

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.save and trainer.current_epoch == 0:
            trainer.save_checkpoint(self.save)


def test_a_resumed_run_is_the_run_of_one_piece_to_the_bit(tmp_path: Path) -> None:
    whole, resumed = (EWACallback(num_experts=3, layers=[1], share_rate=0.6) for _ in range(2))
    watch, again = Watch(whole, save=tmp_path / "epoch0.ckpt"), Watch(resumed)
    one = fit(tmp_path, whole, watch).lightning_module
    torch.manual_seed(99)
    two = fit(tmp_path, resumed, again, ckpt=tmp_path / "epoch0.ckpt").lightning_module
    assert watch.rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert again.rates == watch.rates[3:]
    assert list(expert_layers(two)) == ["ffns.1"]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_checkpoints_have_the_merged_weights_under_the_modules_own_keys(tmp_path: Path) -> None:
    callback = EWACallback(num_experts=3, layers="all", share_rate=0.1)
    trainer = fit(tmp_path, callback)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)
    merged = merge_experts(copy.deepcopy(trainer.lightning_module))
    fresh = Net()
    fresh.load_state_dict(saved["dense_state_dict"])
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), merged.parameters(), strict=True))
    assert saved["callbacks"]["EWACallback"]["steps_done"] == 6


def test_merging_after_fit_and_testing_checkpoints_of_before_and_after(tmp_path: Path) -> None:
    callback = EWACallback(num_experts=2, merge=True)
    watch = Watch(callback, save=tmp_path / "epoch0.ckpt")
    trainer = fit(tmp_path, callback, watch)
    net = trainer.lightning_module
    assert not expert_layers(net)
    assert list(net.state_dict()) == list(Net().state_dict())
    trainer.save_checkpoint(tmp_path / "merged.ckpt")
    for name in ("epoch0", "merged"):
        trainer.test(net, loader(), ckpt_path=tmp_path / f"{name}.ckpt", verbose=False, weights_only=False)
        assert not expert_layers(net)
    merged = torch.load(tmp_path / "merged.ckpt", weights_only=False)["state_dict"]
    assert all(torch.equal(value, merged[key]) for key, value in net.state_dict().items())
    with pytest.raises(TrainingError, match="without experts"):
        fit(tmp_path, EWACallback(num_experts=2), ckpt=tmp_path / "merged.ckpt")


def test_accumulation_counts_optimizer_steps_and_values_are_logged(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    callback = EWACallback(num_experts=2, share_rate=0.5, schedule="constant")
    trainer = fit(
        tmp_path, callback, accumulate_grad_batches=3, gradient_clip_val=1.0, precision="bf16-mixed",
        logger=CSVLogger(tmp_path), log_every_n_steps=1,
    )  # fmt: skip
    assert callback.state_dict()["steps_done"] == trainer.global_step == 2
    header = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()[0].split(",")
    assert {"ewa_share_rate", "ewa_spread"} <= set(header)


def test_a_module_that_was_upcycled_before_is_taken_as_it_is_and_frozen_experts_are_told(tmp_path: Path) -> None:
    net = upcycle(Net(), 5, [0])
    for layer in expert_layers(net).values():
        layer.requires_grad_(False)
    with pytest.warns(UserWarning, match="all experts are frozen"):
        fit(tmp_path, EWACallback(share_rate=0.2), module=net, epochs=1)
    assert [layer.num_experts for layer in expert_layers(net).values()] == [5]
    with pytest.raises(TrainingError, match=r"num_experts=2, .* with 5"):
        fit(tmp_path, EWACallback(num_experts=2), module=net)


def test_unknown_arguments_and_impossible_ones_are_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'num_expert'.*'num_experts'"):
        EWACallback(num_expert=2)
    with pytest.raises(ConfigError, match="'gate'"):
        EWACallback(gate=None)
    with pytest.raises(ValueError, match=r"share_rate=0\.9 with 2 experts"):
        fit(tmp_path, EWACallback(num_experts=2, share_rate=0.9))
