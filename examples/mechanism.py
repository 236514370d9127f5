"""Why EWA does or does not help: where training goes, how flat it is there, and how far apart the experts are.

    python examples/mechanism.py     # 100 digits, 200 epochs, 10 seeds, 5 arms: 40 minutes on one core

Trains arms of digits_small.py at one learning rate, the best of dense and EWA there, and measures them on the way and
at the end. Writes docs/theory/mechanism.json and three figures beside it; docs/theory.md explains them.
"""

import argparse
import copy
import json
import statistics
from datetime import date
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from digits import Part, accuracy
from digits_small import ARMS, few_digits, train
from mechanism_figures import draw, tell
from theory_lab import build, loss, stacks
from torch import Tensor, nn

import pc_ewa
from pc_ewa.compare.machine import hardware
from pc_ewa.ewa import expert_layers
from pc_ewa.ewa.statistics import measure
from pc_ewa.files import write_text

SHOWN = ("dense", "slow", "rup", "ewa", "ewa_constant")
LR, IMAGES, DIRECTIONS = 5e-4, 100, 10
RADII = [k / 20 for k in range(11)]  # of the norm of each row of weights
ALONG = [k / 10 for k in range(-5, 16)]  # 0 is the dense model, 1 the other
Record = dict[str, Any]


def main(arguments: list[str] | None = None) -> None:
    """Train, measure, write, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path("docs/theory"), help="folder of the figures")
    parser.add_argument("--draw", action="store_true", help="train nothing: draw and print what mechanism.json says")
    options = parser.parse_args(arguments)
    file = options.output / "mechanism.json"
    if not options.draw:
        options.output.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(rounded(measure_all(options.seeds, options.epochs))) + "\n")
    result = json.loads(file.read_text())
    draw(result, options.output)
    tell(result)


def measure_all(seeds: int, epochs: int) -> Record:
    """Train and measure each arm with each seed."""
    data = few_digits(IMAGES)
    runs: dict[str, list[Record]] = {name: [] for name in SHOWN}
    predictions = []
    for seed in range(seeds):
        start = weights(build(seed))
        found = {name: trained(data, name, seed, epochs, start) for name in SHOWN}
        dense = found["dense"][0]
        predictions.append(classes(dense, data["test"]))
        for name, (model, curves) in found.items():
            runs[name].append({"seed": seed, **curves, **measured(model, dense, start, data)})
        scores = (f"{name} {runs[name][-1]['test_accuracy']:.1%}" for name in SHOWN)
        print(f"seed {seed}: {', '.join(scores)}", flush=True)
    others = [agreement(a, b) for a, b in combinations(predictions, 2)]
    return {
        "command": f"python examples/mechanism.py --seeds {seeds} --epochs {epochs}",
        **{"date": date.today().isoformat(), "hardware": hardware(), "torch": torch.__version__},
        **{"lr": LR, "images": IMAGES, "radii": RADII, "along": ALONG},
        "titles": {name: ARMS[name]["title"] for name in SHOWN},
        "agreement_of_dense_seeds": statistics.fmean(others) if others else None,
        "runs": runs,
    }


def trained(
    data: dict[str, Part], name: str, seed: int, epochs: int, start: Tensor
) -> tuple[nn.Module, dict[str, list[float]]]:
    """Train one arm. Returns the merged model, and curves of distance, spread and agreement of the experts."""
    curves: dict[str, list[float]] = {
        "epoch": [],
        "distance": [],
        "spread": [],
        "experts_agree": [],
        "merging_gains": [],
    }

    def watch(epoch: int, model: nn.Module) -> None:
        if epoch % max(1, epochs // 40):
            return
        merged = pc_ewa.merge_experts(copy.deepcopy(model)).eval().requires_grad_(False)
        curves["epoch"].append(epoch)
        curves["distance"].append((weights(merged) - start).norm().item())
        if not (layers := expert_layers(model).values()):
            return
        experts = [one_expert(model, expert) for expert in range(4)]
        said = [classes(expert, data["test"]) for expert in experts]
        curves["spread"].append(statistics.fmean(measure(layer, 0).spread for layer in layers))
        curves["experts_agree"].append(statistics.fmean(agreement(a, b) for a, b in combinations(said, 2)))
        alone = statistics.fmean(accuracy(expert, *data["test"]) for expert in experts)
        curves["merging_gains"].append(accuracy(merged, *data["test"]) - alone)

    return train(data["train"], ARMS[name], LR, seed, epochs, watch), curves


def one_expert(model: nn.Module, expert: int) -> nn.Module:
    """Build the dense model that has this expert of every mixture as its FFN."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for stack in stacks(model):
            stack.copy_(stack[expert].clone().expand_as(stack))
    return pc_ewa.merge_experts(model).eval().requires_grad_(False)


def measured(model: nn.Module, dense: nn.Module, start: Tensor, data: dict[str, Part]) -> Record:
    """Measure a merged model: losses, distances, and the losses around it and on the line from dense to it."""
    here, there = weights(model), weights(dense)
    train_part, test_part = data["train"], data["test"]
    around = [directions(model, seed) for seed in range(DIRECTIONS)]
    probe = copy.deepcopy(model)

    def loss_at(place: Tensor, part: Part) -> float:
        nn.utils.vector_to_parameters(place, probe.parameters())
        return loss(probe, *part).item()

    def ball(part: Part) -> list[float]:
        return [statistics.fmean(loss_at(here + r * way, part) for way in around) for r in RADII]

    return {
        **{"train_loss": loss(model, *train_part).item(), "test_loss": loss(model, *test_part).item()},
        "test_accuracy": accuracy(model, *test_part),
        "agrees_with_dense": agreement(classes(model, test_part), classes(dense, test_part)),
        "distance_at_end": (here - start).norm().item(),
        "from_dense": (here - there).norm().item(),
        **{"ball_train": ball(train_part), "ball_test": ball(test_part)},
        "line_train": [loss_at(there + k * (here - there), train_part) for k in ALONG],
        "line_test": [loss_at(there + k * (here - there), test_part) for k in ALONG],
    }


def directions(model: nn.Module, seed: int) -> Tensor:
    """Draw a random direction, each row as long as the row of weights that it changes; none for biases and norms.

    Without that a model with larger weights would look flatter: Li et al., "Visualizing the Loss Landscape of Neural
    Nets", section 4.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for parameter in model.parameters():
        way = torch.randn(parameter.shape, generator=generator)
        rows = parameter.dim() > 1
        scale = parameter.flatten(1).norm(dim=1) / way.flatten(1).norm(dim=1) if rows else torch.zeros(1)
        parts.append((way.flatten(1) * scale[:, None]).flatten() if rows else way * 0)
    return torch.cat(parts)


def weights(model: nn.Module) -> Tensor:
    """Return a copy of all parameters as one vector."""
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def classes(model: nn.Module, part: Part) -> Tensor:
    """Predict the class of each image."""
    found: Tensor = model(pixel_values=part[0]).logits.argmax(1)
    return found


def agreement(first: Tensor, second: Tensor) -> float:
    """Return the share of images to which both give the same class."""
    return (first == second).double().mean().item()


def rounded(value: Any) -> Any:
    """Keep six digits of each number: what noise is needs no room in the file."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
