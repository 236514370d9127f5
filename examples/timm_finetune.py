"""EWA on a timm model: scikit-learn's digits, dense and with experts, merged, the accuracy of both; a minute."""

import argparse

import timm
import torch
from digits import Part, digits
from timm.optim import create_optimizer_v2
from torch import nn

import pc_ewa


def train(model: nn.Module, data: Part, epochs: int, lr: float, experts: int) -> nn.Module:
    """Train by a short form of timm's train script. EWA adds only the lines with pc_ewa."""
    images, labels = data
    batches = max(1, len(labels) // 64)
    if experts > 1:
        pc_ewa.upcycle(model, num_experts=experts, layers="every-2")  # before the optimizer is made
    optimizer = create_optimizer_v2(model, opt="adamw", lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs * batches, cycle_momentum=False)
    if experts > 1:
        pc_ewa.ExpertAverager(model, share_rate=0.3, total_steps=epochs * batches).attach(optimizer)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).tensor_split(batches):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return pc_ewa.merge_experts(model).eval()  # the model of timm again, with its own keys


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of the images that the model gets right."""
    return (model(images).argmax(1) == labels).double().mean().item()


def main() -> None:
    """Fine-tune what a dense training of half the epochs made, dense and with experts, with the same batches."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="swin_tiny_patch4_window7_224", help="any that takes img_size")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--options", nargs="*", default=["patch_size=1", "embed_dim=24", "window_size=2"])
    options = parser.parse_args()
    size = {key: int(value) for key, value in (option.split("=") for option in options.options)}
    data = digits()

    def build() -> nn.Module:
        return timm.create_model(options.model, img_size=8, in_chans=1, num_classes=10, **size)

    torch.manual_seed(0)
    start = train(build(), data["train"], options.epochs, options.lr, experts=1).state_dict()
    print(f"start: {accuracy_of(build(), start, data['val']):.1%} of the validation images")
    for name, experts in (("dense", 1), ("EWA", options.experts)):
        torch.manual_seed(1)
        model = build()
        model.load_state_dict(start)
        model = train(model, data["train"], options.epochs, options.lr / 2, experts)
        assert list(model.state_dict()) == list(start)
        print(f"{name}: {accuracy(model, *data['val']):.1%} val, {accuracy(model, *data['test']):.1%} test")


def accuracy_of(model: nn.Module, weights: dict[str, torch.Tensor], part: Part) -> float:
    """Share of the images that a model of these weights gets right."""
    model.load_state_dict(weights)
    return accuracy(model.eval(), *part)


if __name__ == "__main__":
    main()
