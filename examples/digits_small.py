"""EWA where images are few: 100 to 300 digits to train on, 200 epochs, every arm at its own learning rate; resumable.

    python examples/digits_small.py --images 200 --seeds 40 --json docs/results/digits_200.json

Each run is a line of docs/results/digits_200.runs.jsonl as soon as it has finished, and is never run again: the same
command goes on, on another day or machine. Two processes share the work, each with --only and half of the arms.
"""

import argparse
import hashlib
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from any_vit import SIZE
from digits import Part, accuracy, digits, publish
from sklearn.model_selection import train_test_split
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import ViTConfig, ViTForImageClassification

import pc_ewa
from pc_ewa.compare.difference import difference
from pc_ewa.compare.machine import hardware
from pc_ewa.compare.plan import beyond
from pc_ewa.compare.sweep import choose_value, edge
from pc_ewa.eval.right import pack_right
from pc_ewa.ewa import Gate, balance_loss, has_gate
from pc_ewa.ewa.find_ffns import find_ffns, select_layers
from pc_ewa.ewa.sites import ffn_at
from pc_ewa.files import append_text

Arm = dict[str, Any]
RATES, SWEEP_SEEDS, EXTEND = (5e-4, 1e-3, 2e-3, 4e-3), 5, 3
BATCH, LAYERS = 50, "every-2"
CONSTANT, NAIVE = {"schedule": "constant"}, {"gate": True, "init": "independent"}
INDEPENDENT = {"init": "independent"}
FOLLOWS: Arm = {"share_rate": 0.75, "schedule": "lr", "alpha": 3e-3}
# What pc_ewa.upcycle ("experts") and pc_ewa.ExpertAverager ("averaging") get, or what else is done to a dense model.
ARMS: dict[str, Arm] = {
    "dense": {"title": "dense"},
    "ewa": {"title": "EWA, linear to β = 0.3", "experts": {}, "averaging": {}},
    "ewa_constant": {"title": "EWA, constant β = 0.3", "experts": {}, "averaging": CONSTANT},
    "naive": {"title": "naive MoE (top-1 gate), kept as MoE", "experts": NAIVE, "averaging": {"share_rate": 0.0}},
    "naive_ewa": {"title": "naive MoE + EWA", "against": "naive", "experts": NAIVE, "averaging": {}},
    "naive_early": {
        "title": "naive MoE + Early EWA (first half)",
        "against": "naive",
        "experts": NAIVE,
        "averaging": {"stop": 0.5},
    },
    # Not in the plan at first: see "After 100 digits" there.
    "independent": {"title": "EWA, linear, independent experts", "experts": INDEPENDENT, "averaging": {}},
    "mean_start": {"title": "dense, FFNs start as means of 4", "mean_of": 4},
    "ema": {"title": "dense + EMA", "decay": 0.99},
    "slow": {"title": "dense, FFNs at 0.66 of the rate", "factor": 0.66},
    "rup": {"title": "RUP, β = 0: merged only at the end", "experts": {}, "averaging": {"share_rate": 0.0}},
    "ewa_0.03": {"title": "EWA, constant β = 0.03", "experts": {}, "averaging": {"share_rate": 0.03, **CONSTANT}},
    "ewa_0.003": {"title": "EWA, constant β = 0.003", "experts": {}, "averaging": {"share_rate": 0.003, **CONSTANT}},
    "full": {
        "title": "β = 3/4, constant: merged after every step",
        "experts": {},
        "averaging": {"share_rate": 0.75, **CONSTANT},
    },
    "ewa_lr": {"title": "EWA, β follows lr", "experts": {}, "averaging": {**FOLLOWS, "power": 1}},
    "ewa_lr2": {"title": "EWA, β follows lr²", "experts": {}, "averaging": {**FOLLOWS, "power": 2}},
}
# Holm's correction is for these; the plan says why two came later, and why with 100 images they are explored.
COMPARISONS, ADDED = ["ewa", "ewa_constant", "naive_ewa", "naive_early"], ["independent", "mean_start"]
PAIRS = [("naive_ewa", "dense"), ("naive_ewa", "mean_start"), ("independent", "mean_start")]


def few_digits(images: int) -> dict[str, Part]:
    """The parts of digits.py, but for the training part: so many images of it, stratified, the same always."""
    data = digits()
    points, labels = data["train"]
    few, _ = train_test_split(range(len(labels)), train_size=images, stratify=labels, random_state=0)
    return data | {"train": (points[few], labels[few])}


def train(
    data: Part, arm: Arm, lr: float, seed: int, epochs: int, watch: Callable[[int, nn.Module], None] | None = None
) -> nn.Module:
    """Train one model; returns the one to measure: merged, averaged, or with its gates.

    `watch` is called with the number of finished epochs and the model as it trains.
    """
    images, labels = data
    torch.manual_seed(seed)
    model: nn.Module = ViTForImageClassification(ViTConfig(**SIZE))
    if "mean_of" in arm:  # an FFN that is the mean of independent ones starts at 1/√N of its size, as under EWA
        model = pc_ewa.merge_experts(pc_ewa.upcycle(model, arm["mean_of"], LAYERS, "independent"))
    if "experts" in arm:
        gate = Gate(balance_weight=0.01) if arm["experts"].get("gate") else None
        pc_ewa.upcycle(model, **{"num_experts": 4, "layers": LAYERS, **arm["experts"], "gate": gate})
    batches = len(labels) // BATCH
    steps, groups = epochs * batches, _groups(model, arm.get("factor"))
    optimizer = torch.optim.AdamW([{"params": params} for params, _ in groups], lr, weight_decay=0.05, fused=True)
    peaks = [lr * factor for _, factor in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, steps, pct_start=0.1, cycle_momentum=False)
    if "experts" in arm:
        pc_ewa.ExpertAverager(model, total_steps=steps, **arm["averaging"]).attach(optimizer)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(arm["decay"])) if "decay" in arm else None
    order = torch.Generator().manual_seed(seed)  # the same batches for all: the default one deals the tokens
    for epoch in range(1, epochs + 1):
        for batch in torch.randperm(len(labels), generator=order).tensor_split(batches):
            optimizer.zero_grad()
            loss = model(pixel_values=images[batch], labels=labels[batch]).loss
            (loss + balance_loss(model)).backward()
            optimizer.step()
            schedule.step()
            if ema:
                ema.update_parameters(model)
        if watch:
            watch(epoch, model)
    model = ema.module if ema else model
    return (model if has_gate(model) else pc_ewa.merge_experts(model)).eval().requires_grad_(False)


def _groups(model: nn.Module, factor: float | None) -> list[tuple[list[nn.Parameter], float]]:
    """The parameters and the factors of their learning rates; the FFNs that would be experts have one of their own."""
    if factor is None:
        return [([*model.parameters()], 1.0)]
    sites = find_ffns(model)
    slow = [p for index in select_layers(LAYERS, len(sites)) for p in ffn_at(sites[index]).parameters()]
    ids = {id(parameter) for parameter in slow}
    return [([p for p in model.parameters() if id(p) not in ids], 1.0), (slow, factor)]


class Runs:
    """The finished runs of a file, and the making of those that it lacks."""

    def __init__(self, path: Path | None, images: int, epochs: int) -> None:
        self.path, self.images, self.epochs = path, images, epochs
        self.data = few_digits(images)
        lines = path.read_text().splitlines() if path and path.is_file() else []
        self.known = {(r["settings"], r["lr"], r["seed"]): r for r in (parsed(line, path) for line in lines)}

    def get(self, name: str, lr: float, seed: int) -> dict[str, Any]:
        """Return a run. It is trained now if the file lacks it."""
        about = {key: value for key, value in ARMS[name].items() if key not in ("title", "against")}
        text = json.dumps([about, SIZE, BATCH, LAYERS, self.images, self.epochs], sort_keys=True)
        key = (hashlib.blake2b(text.encode(), digest_size=8).hexdigest(), lr, seed)
        if key not in self.known:
            model = train(self.data["train"], ARMS[name], lr, seed, self.epochs)
            images, labels = self.data["test"]
            right = model(pixel_values=images).logits.argmax(1) == labels
            self.known[key] = {
                **{"arm": name, "settings": key[0], "lr": lr, "seed": seed, "images": self.images},
                **{"date": date.today().isoformat(), "hardware": hardware(), "torch": torch.__version__},
                **{"val": accuracy(model, *self.data["val"]), "test": right.double().mean().item()},
                "right": pack_right(right),
            }
            if self.path:
                append_text(self.path, json.dumps(self.known[key]) + "\n")
            print(f"{name}, lr {lr:g}, seed {seed}: validation {self.known[key]['val']:.1%}", flush=True)
        return self.known[key]

    def sweep(self, name: str, seeds: int) -> dict[float, dict[str, float]]:
        """Return validation scores by learning rate and seed, also beyond the ends while the best lies there."""
        scores = {lr: {str(s): self.get(name, lr, s)["val"] for s in range(seeds)} for lr in RATES}
        for _ in range(EXTEND):
            if not (side := edge(choose_value(scores, [*scores[RATES[0]]], True), scores)):
                break
            lr = float(beyond(sorted(scores), side))
            scores[lr] = {str(s): self.get(name, lr, s)["val"] for s in range(seeds)}
        return dict(sorted(scores.items()))


def parsed(line: str, path: Path | None) -> Arm:
    """Read a line of the ledger."""
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError):
        raise SystemExit(f"{path}: {line[:60]!r}... is not a finished run; take that line out") from None


def main() -> None:
    """Sweep, then run all seeds of each arm; test is measured at the rate that validation chose."""
    options = parse()
    ledger = options.json.with_suffix(".runs.jsonl") if options.json else None
    runs, seeds, variants = Runs(ledger, options.images, options.epochs), [*range(options.seeds)], {}
    swept = min(SWEEP_SEEDS, options.seeds)
    about: Arm = {"name": f"digits_{options.images}", "title": f"Digits, {options.images} training images"}
    about["command"] = f"python examples/digits_small.py --images {options.images} --seeds {options.seeds}"
    about["command"] += f" --epochs {options.epochs}"
    for name in options.only.split(",") if options.only else ARMS:
        sweep = runs.sweep(name, swept)
        best = choose_value(sweep, [*map(str, range(swept))], True)
        assert best is not None
        found = {str(seed): runs.get(name, float(best), seed) for seed in seeds}
        scores = {key: {s: r[part] for s, r in found.items()} for key, part in (("merged", "test"), ("val", "val"))}
        told = {key: ARMS[name][key] for key in ("title", "against") if key in ARMS[name]}
        right = {seed: run["right"] for seed, run in found.items()}
        variants[name] = {**told, "value": best, "sweep": sweep, "scores": scores, "right": right}
    about["sweep"] = {"key": "lr", "values": RATES, "seeds": [*range(swept)]}
    used = [run for run in runs.known.values() if run["images"] == options.images]
    about["hardware"] = " and ".join(dict.fromkeys(run["hardware"] for run in used))
    about["date"] = max(run["date"] for run in used)
    if "dense" in variants:
        planned = COMPARISONS + (ADDED if options.images > 100 else [])
        publish(options.json, variants, seeds, **about, comparisons=planned)
        tell_pairs(variants)


def tell_pairs(variants: dict[str, Any]) -> None:
    """Print differences that are in no table: of what looked like a gain of the experts. They are explored."""
    for name, other in PAIRS:
        if name in variants and other in variants:
            own, against = (variants[arm]["scores"]["merged"] for arm in (name, other))
            found = difference(own, against)
            if found and found.low is not None and found.high is not None:
                ends = f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
                title, rival = variants[name]["title"], variants[other]["title"]
                print(f"explored: {title}, against {rival}: {100 * found.mean:+.1f} points ({ends})")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200, help="training images, 100 to 500")
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--only", metavar="A,B", help=f"run these of {', '.join(ARMS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, and each run beside it")
    options = parser.parse_args()
    if unknown := {*filter(None, (options.only or "").split(","))} - ARMS.keys():
        parser.error(f"--only {options.only}: no arm {min(unknown)!r}; choose from {', '.join(ARMS)}")
    if not 100 <= options.images <= 500 or min(options.seeds, options.epochs) < 1:
        parser.error("--images must be 100 to 500, --seeds and --epochs at least 1")
    if options.json and not options.json.parent.is_dir():
        parser.error("the folder of --json must exist")
    return options


if __name__ == "__main__":
    main()
