"""EWA on any ViT: dense, RUP and EWA with a small image ViT of transformers on scikit-learn's digits; 5 minutes."""

import argparse
from pathlib import Path
from typing import Any

import torch
from digits import Part, accuracy, digits, publish
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

import pc_ewa

Arguments = dict[str, Any]
EXPERTS: Arguments = {"num_experts": 4, "layers": "every-2"}
# Title, what pc_ewa.upcycle gets (nothing: the model stays dense), what pc_ewa.ExpertAverager gets.
VARIANTS: dict[str, tuple[str, Arguments, Arguments]] = {
    "dense": ("dense", {}, {}),
    "rup": ("RUP, β = 0", EXPERTS, {"share_rate": 0.0}),
    "ewa": ("EWA, linear to 0.3", EXPERTS, {"share_rate": 0.3, "schedule": "linear"}),
}
RATES = (5e-4, 1e-3, 2e-3, 4e-3)
SIZE = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 128}
SIZE |= {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10, "initializer_range": 0.1}


def train(data: Part, experts: Arguments, averaging: Arguments, lr: float, seed: int, epochs: int) -> nn.Module:
    """Train one model and return it merged. EWA adds only the three calls of pc_ewa."""
    images, labels = data
    torch.manual_seed(seed)
    model, steps = ViTForImageClassification(ViTConfig(**SIZE)), epochs * 9
    if experts:
        pc_ewa.upcycle(model, **experts)
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1, cycle_momentum=False)
    if experts:
        pc_ewa.ExpertAverager(model, total_steps=steps, **averaging).attach(optimizer)
    order = torch.Generator().manual_seed(seed)  # the same batches for all: the default one deals the tokens
    for _ in range(epochs):
        for batch in torch.randperm(len(labels), generator=order).tensor_split(9):
            optimizer.zero_grad()
            model(pixel_values=images[batch], labels=labels[batch]).loss.backward()
            optimizer.step()
            schedule.step()
    return pc_ewa.merge_experts(model).eval().requires_grad_(False)  # merging leaves a dense model as it is


def parse(description: str | None, seeds: int) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    options = parser.parse_args()
    if min(options.seeds, options.epochs) < 1 or (options.json and not options.json.parent.is_dir()):
        parser.error("--seeds and --epochs must be at least 1, and the folder of --json must exist")
    return options


def main() -> None:
    """Sweep the learning rate of each variant on the validation images; measure on test once, at the best."""
    options = parse(__doc__, seeds=5)
    data, seeds, variants = digits(), list(range(options.seeds)), {}
    for name, (title, *ewa) in VARIANTS.items():
        models = {(lr, s): train(data["train"], *ewa, lr, s, options.epochs) for lr in RATES for s in seeds}
        val = {lr: {s: accuracy(models[lr, s], *data["val"]) for s in seeds} for lr in RATES}
        best = max(val, key=lambda lr, val=val: sum(val[lr].values()))
        scores = {"merged": {s: accuracy(models[best, s], *data["test"]) for s in seeds}, "val": val[best]}
        variants[name] = {"title": title, "value": best, "sweep": val, "scores": scores}
    about = {"name": "digits", "title": "A ViT of transformers on digits"}
    about["command"] = f"python examples/any_vit.py --seeds {options.seeds} --epochs {options.epochs}"
    publish(options.json, variants, seeds, **about, sweep={"key": "lr", "values": RATES, "seeds": seeds})


if __name__ == "__main__":
    main()
