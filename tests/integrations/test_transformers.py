"""EWA in a real Trainer of transformers, and peft's adapters beside experts."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from pc_ewa.errors import ConfigError, TrainingError
from pc_ewa.ewa import expert_layers, merge_experts, upcycle

pytest.importorskip("accelerate")
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification

from pc_ewa.integrations.transformers import EWACallback


class Images(Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(1, 4, 4, generator=generator), "labels": index % 3}


def vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    size = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    return ViTForImageClassification(ViTConfig(**size, image_size=4, patch_size=2, num_channels=1, num_labels=3))


class Watch(TrainerCallback):
    def __init__(self, ewa: EWACallback) -> None:
        self.ewa, self.rates = ewa, []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        assert self.ewa.averager
        self.rates += [measured.share_rate for measured in self.ewa.averager.statistics().values()]


def trainer(folder: Path, *callbacks: TrainerCallback, model: Any = None, **options: Any) -> Trainer:
    options = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 4, "logging_steps": 1} | options
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=4, learning_rate=1e-2, report_to=[], disable_tqdm=True, use_cpu=True,
        **options,
    )  # fmt: skip
    return Trainer(model or vit(), arguments, train_dataset=Images(), eval_dataset=Images(), callbacks=list(callbacks))


@pytest.fixture(autouse=True)
def no_datasets_of_hugging_face(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are not installed, a checkout's folder `datasets` passes for them if Python runs from there."""
    for user in ("transformers.trainer", "pc_ewa.integrations.transformers"):
        monkeypatch.setattr(f"{user}.is_datasets_available", lambda: False)


def test_a_resumed_run_is_the_run_of_one_piece_to_the_bit(tmp_path: Path) -> None:
    whole, resumed = (EWACallback(num_experts=3, share_rate=0.6) for _ in range(2))
    watch, again = Watch(whole), Watch(resumed)
    one = trainer(tmp_path, whole, watch)
    one.train()
    two = trainer(tmp_path / "again", resumed, again)
    torch.rand(9)
    two.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert watch.rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert again.rates == watch.rates[4:]
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))
    history = [line for line in one.state.log_history if "loss" in line]
    assert [line["ewa_share_rate"] for line in history] == pytest.approx(watch.rates)
    assert all(line["ewa_spread"] > 0 for line in history)


def test_what_is_saved_loads_as_the_merged_model(tmp_path: Path) -> None:
    made = trainer(tmp_path, EWACallback(num_experts=3, layers="all", share_rate=0.1))
    made.train()
    made.save_model(str(tmp_path / "final"))
    made.model.save_pretrained(tmp_path / "by hand")
    merged = merge_experts(copy.deepcopy(made.model)).eval()
    x = torch.randn(2, 1, 4, 4)
    for folder in ("final", "by hand", "checkpoint-6"):
        loaded, report = ViTForImageClassification.from_pretrained(tmp_path / folder, output_loading_info=True)
        assert not report["missing_keys"], folder
        assert torch.equal(loaded.eval()(x).logits, merged(x).logits), folder
    assert expert_layers(made.model)


def test_the_best_model_is_loaded_and_merged_at_the_end(tmp_path: Path) -> None:
    made = trainer(
        tmp_path, EWACallback(num_experts=2, merge=True), load_best_model_at_end=True, eval_strategy="steps",
        eval_steps=4, gradient_accumulation_steps=2, num_train_epochs=4, max_grad_norm=1.0, bf16=True,
        gradient_checkpointing=True,
    )  # fmt: skip
    made.train()
    assert made.state.global_step == 8
    assert not expert_layers(made.model)
    best = ViTForImageClassification.from_pretrained(made.state.best_model_checkpoint)
    assert list(best.state_dict()) == list(made.model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(best.parameters(), made.model.parameters(), strict=True))
    made.save_model(str(tmp_path / "final"))
    _, report = ViTForImageClassification.from_pretrained(tmp_path / "final", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_impossible_trainings_are_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'share_rat'.*'share_rate'"):
        EWACallback(share_rat=0.1)
    late = trainer(tmp_path, save_strategy="epoch", num_train_epochs=1)
    late.train()
    late.add_callback(EWACallback(num_experts=2))
    with pytest.raises(TrainingError, match="no experts"):
        late.train()
    with pytest.raises(TrainingError, match="saved without experts"):
        trainer(tmp_path, EWACallback(num_experts=2)).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    model = vit()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    early = trainer(tmp_path, EWACallback(num_experts=2), model=model)
    early.optimizer = optimizer
    with pytest.raises(ValueError, match=r"build it after upcycle\(\)"):
        early.train()


def test_a_callback_that_the_trainer_makes_again_goes_on_too(tmp_path: Path) -> None:
    options = {"restore_callback_states_from_checkpoint": True}
    trainer(tmp_path, EWACallback(num_experts=3, share_rate=0.6, merge=True), **options).train()
    again = trainer(tmp_path, EWACallback(num_experts=3, share_rate=0.6), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    (made,) = [each for each in again.callback_handler.callbacks if isinstance(each, EWACallback)]
    assert made.steps_done == 6
    assert not expert_layers(again.model)


def test_a_folder_that_passes_for_the_package_datasets_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "datasets").mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    monkeypatch.setattr("pc_ewa.integrations.transformers.is_datasets_available", lambda: True)
    with pytest.raises(TrainingError, match=f"the folder {tmp_path}/datasets for the package"):
        trainer(tmp_path, EWACallback(num_experts=2))


def lora(model: Any, *targets: str) -> Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=list(targets), r=2))


def test_adapters_outside_of_the_ffns_train_beside_experts(tmp_path: Path) -> None:
    model = lora(vit(), "q_proj", "v_proj")
    for ffn in model.base_model.model.vit.layers:
        ffn.mlp.requires_grad_(True)
    callback = EWACallback(num_experts=2, merge=True, share_rate=0.4, schedule="constant")
    made = trainer(tmp_path, callback, model=model, num_train_epochs=1)
    with pytest.warns(UserWarning, match="adapters"):
        made.train()
    assert not expert_layers(model)
    dense, start = model.merge_and_unload(), vit()
    assert list(dense.state_dict()) == list(start.state_dict())
    changed = [key for key, value in dense.state_dict().items() if not torch.equal(value, start.state_dict()[key])]
    assert any("mlp.fc1" in key for key in changed)
    assert any("q_proj" in key for key in changed)


def test_frozen_experts_are_told_and_adapters_in_ffns_refused(tmp_path: Path) -> None:
    upcycled = lora(upcycle(vit(), 2), "q_proj")  # peft freezes all but its adapters
    with pytest.warns(UserWarning, match="all experts are frozen"):
        trainer(tmp_path, EWACallback(num_experts=2), model=upcycled, num_train_epochs=1).train()
    with pytest.raises(ValueError, match=r"its fc1 is an adapter \(LoRA\).*merge_and_unload\(\)"):
        upcycle(lora(vit(), "fc1"), 2)
    with pytest.raises(ValueError, match=r"mlp \(\w+\) cannot become experts: its fc2 is an adapter"):
        upcycle(lora(vit(), "fc2"), 2, ffn="*.mlp")
