"""docs/any-vit.md: all of its code runs."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pc_ewa.ewa import expert_layers

PAGE = (Path(__file__).parents[2] / "docs" / "any-vit.md").read_text()
CODE = re.findall(r"## ?([^\n]*)\n[^#]*?```python\n(.*?)```", "## own loop\n" + PAGE.partition("\n")[2], re.DOTALL)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        ffns = (nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6)) for _ in range(2))
        self.blocks = nn.Sequential(*(nn.Sequential(ffn, nn.LayerNorm(6)) for ffn in ffns))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x).mean(1)


def names(monkeypatch: pytest.MonkeyPatch, title: str) -> dict[str, Any]:
    """What the page takes for given."""
    loader = DataLoader(TensorDataset(torch.randn(8, 5, 6), torch.arange(8) % 6), batch_size=2)
    given: dict[str, Any] = {"torch": torch, "model": Classifier(), "loader": loader, "num_epochs": 1}

    def train_one_epoch(model: nn.Module, loader: Any, optimizer: torch.optim.Optimizer) -> None:
        assert expert_layers(model)
        for inputs, labels in loader:
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()

    given["train_one_epoch"] = train_one_epoch
    given["create_optimizer_v2"] = lambda model, opt, lr: torch.optim.AdamW(model.parameters(), lr)
    if title == "Lightning":
        from lightning.pytorch import LightningModule

        class Module(LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = Classifier()

            def training_step(self, batch: list[Tensor], index: int) -> Tensor:
                return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), 0.1)

        given["module"] = Module()
    if title in ("Trainer of transformers", "peft"):
        from transformers import ViTConfig, ViTForImageClassification

        for user in ("transformers.trainer", "pc_ewa.integrations.transformers"):  # a checkout has a folder `datasets`
            monkeypatch.setattr(f"{user}.is_datasets_available", lambda: False)
        size = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
        given["vit"] = ViTForImageClassification(ViTConfig(**size, image_size=4, patch_size=2, num_channels=1))
        given["images"] = [{"pixel_values": torch.randn(1, 4, 4), "labels": i % 2} for i in range(4)]
    return given


def test_each_trainer_has_its_code() -> None:
    titles = [title for title, _ in CODE]
    trainers = ["timm's train script", "Lightning", "Trainer of transformers", "accelerate", "peft"]
    assert titles == ["own loop", *trainers, "Several processes"]


@pytest.mark.parametrize(("title", "code"), CODE[:-1], ids=[title for title, _ in CODE[:-1]])
def test_the_code_of_the_page_runs(title: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = {
        "Lightning": "lightning",
        "Trainer of transformers": "accelerate",
        "accelerate": "accelerate",
        "peft": "peft",
    }
    if title in packages:
        pytest.importorskip(packages[title])
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    space = names(monkeypatch, title)
    exec(compile(code, "any-vit.md", "exec"), space)
    trained = space.get("merged", space.get("module", space["model"]))
    assert bool(expert_layers(trained)) == (title == "accelerate")


@pytest.mark.sharded
def test_the_code_for_several_processes_runs_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space = names(monkeypatch, "Several processes")
    keys = list(space["model"].state_dict())
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        exec(compile(dict(CODE)["Several processes"], "any-vit.md", "exec"), space)
    finally:
        dist.destroy_process_group()
    assert list(space["merged"]) == keys
    assert list(space["weights"]) == [name for name, _ in space["model"].named_parameters()]
    assert (tmp_path / "runs" / "parts" / ".metadata").is_file()
