"""EWA on any ViT: dense, RUP and EWA with a small image ViT of transformers on scikit-learn's digits; 5 minutes."""

import argparse
import json
from datetime import date
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

import pc_ewa
from pc_ewa.study.report import as_markdown
from pc_ewa.study.results import hardware

VARIANTS = {"dense": ("dense", None), "rup": ("RUP, β = 0", 0.0), "ewa": ("EWA, linear to 0.3", 0.3)}
RATES = (5e-4, 1e-3, 2e-3, 4e-3)
SIZE = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 128}
SIZE |= {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10, "initializer_range": 0.1}


def digits() -> dict[str, tuple[Tensor, Tensor]]:
    """Images (B, 1, 8, 8) in -1 to 1 and labels (B,) by part: 30 % train, 20 % val, 50 % test; the same always."""
    images, labels = load_digits(return_X_y=True)
    rest, test = train_test_split(range(len(labels)), test_size=0.5, stratify=labels, random_state=0)
    train, val = train_test_split(rest, test_size=0.4, stratify=labels[rest], random_state=0)
    images, labels = torch.tensor(images).float().view(-1, 1, 8, 8) / 8 - 1, torch.tensor(labels)
    return {name: (images[part], labels[part]) for name, part in (("train", train), ("val", val), ("test", test))}


def train(images: Tensor, labels: Tensor, share_rate: float | None, lr: float, seed: int, epochs: int) -> nn.Module:
    """The whole recipe; all that EWA adds to it are the three calls of pc_ewa. Returns the merged model."""
    torch.manual_seed(seed)
    model, steps = ViTForImageClassification(ViTConfig(**SIZE)), epochs * 9
    if share_rate is not None:
        pc_ewa.upcycle(model, num_experts=4, layers="every-2")
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1, cycle_momentum=False)
    if share_rate is not None:
        pc_ewa.ExpertAverager(model, share_rate, schedule="linear", total_steps=steps).attach(optimizer)
    order = torch.Generator().manual_seed(seed)  # the same batches for all: the default one deals the tokens
    for _ in range(epochs):
        for batch in torch.randperm(len(labels), generator=order).tensor_split(9):
            optimizer.zero_grad()
            model(pixel_values=images[batch], labels=labels[batch]).loss.backward()
            optimizer.step()
            schedule.step()
    return pc_ewa.merge_experts(model).eval().requires_grad_(False)  # merging leaves a dense model as it is


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images that the model gets right."""
    return (model(pixel_values=images).logits.argmax(1) == labels).double().mean().item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    options = parser.parse_args()
    if min(options.seeds, options.epochs) < 1 or (options.json and not options.json.parent.is_dir()):
        parser.error("--seeds and --epochs must be at least 1, and the folder of --json must exist")
    data, seeds, variants = digits(), list(range(options.seeds)), {}
    for name, (title, share_rate) in VARIANTS.items():
        models = {(lr, s): train(*data["train"], share_rate, lr, s, options.epochs) for lr in RATES for s in seeds}
        val = {lr: {s: accuracy(models[lr, s], *data["val"]) for s in seeds} for lr in RATES}
        best = max(val, key=lambda lr, val=val: sum(val[lr].values()))  # test is looked at once, at this rate
        scores = {"merged": {s: accuracy(models[best, s], *data["test"]) for s in seeds}, "val": val[best]}
        variants[name] = {"title": title, "value": best, "sweep": val, "scores": scores}
    command = f"python examples/any_vit.py --seeds {options.seeds} --epochs {options.epochs}"
    results = {"name": "digits", "title": "A ViT of transformers on digits", "command": command, "seeds": seeds}
    results |= {"headline": "accuracy", "higher_is_better": True, "baseline": "dense", "variants": variants}
    results |= {"date": date.today().isoformat(), "hardware": hardware(), "versions": {"torch": torch.__version__}}
    results |= {"sweep": {"key": "lr", "values": RATES, "seeds": seeds}, "test_shapes": len(data["test"][0])}
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(as_markdown(results))
