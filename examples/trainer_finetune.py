"""EWA in the Trainer of transformers: a ViT on scikit-learn's digits, saved merged, loaded again, measured."""

import argparse
from pathlib import Path
from typing import Any

import torch
from digits import Part, accuracy, digits
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from pc_ewa.integrations.transformers import EWACallback

SIZE = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 128}
SIZE |= {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10, "initializer_range": 0.1}


class Images(Dataset[dict[str, Any]]):
    """Images and labels as the Trainer takes them."""

    def __init__(self, part: Part) -> None:
        self.images, self.labels = part

    def __len__(self) -> int:
        """Count the images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one image and its label."""
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def finetune(data: dict[str, Part], folder: Path, epochs: int, experts: int) -> Path:
    """Train, with experts if there are more than one, and save; the callback is all that EWA adds."""
    set_seed(0)
    arguments = TrainingArguments(
        str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=60,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    callbacks = [EWACallback(num_experts=experts, share_rate=0.3, merge=True)] if experts > 1 else []
    model = ViTForImageClassification(ViTConfig(**SIZE))
    trainer = Trainer(model, arguments, train_dataset=Images(data["train"]), callbacks=callbacks)
    trainer.train()
    trainer.save_model(str(folder))
    return folder


def main() -> None:
    """Compare a dense training with one by experts, by what their saved models get right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("runs/trainer_finetune"))
    options = parser.parse_args()
    data = digits()
    for name, experts in (("EWA", options.experts), ("dense", 1)):
        folder = finetune(data, options.output / name, options.epochs, experts)
        with torch.no_grad():
            model = ViTForImageClassification.from_pretrained(folder).eval()
            print(f"{name}: {accuracy(model, *data['val']):.1%} val, {accuracy(model, *data['test']):.1%} test")


if __name__ == "__main__":
    main()
