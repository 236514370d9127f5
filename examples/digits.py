"""Shared by the examples on scikit-learn's digits: the images, the accuracy, and how results are printed and kept."""

import json
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from pc_ewa.compare.report import as_markdown
from pc_ewa.compare.results import hardware
from pc_ewa.files import write_text

Part = tuple[Tensor, Tensor]


def digits() -> dict[str, Part]:
    """Images (B, 1, 8, 8) in -1 to 1 and labels (B,) by part: 30 % train, 20 % val, 50 % test; the same always."""
    images, labels = load_digits(return_X_y=True)
    rest, test = train_test_split(range(len(labels)), test_size=0.5, stratify=labels, random_state=0)
    train, val = train_test_split(rest, test_size=0.4, stratify=labels[rest], random_state=0)
    images, labels = torch.tensor(images).float().view(-1, 1, 8, 8) / 8 - 1, torch.tensor(labels)
    return {name: (images[part], labels[part]) for name, part in (("train", train), ("val", val), ("test", test))}


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that the model classifies correctly."""
    return (model(pixel_values=images).logits.argmax(1) == labels).double().mean().item()


def publish(path: Path | None, variants: dict[str, Any], seeds: list[int], **about: Any) -> None:
    """Write the results as JSON, as docs/tables.py reads them, and print them as a table, in words too.

    Args:
        path: the file, if there shall be one.
        variants: title, value, sweep and scores by name; differences are to "dense".
        seeds: of all variants.
        about: name, title and command, and what else the file shall say; date and hardware if not those of now.
    """
    results = {"date": date.today().isoformat(), "hardware": hardware(), "versions": {"torch": torch.__version__}}
    results |= {**about, "main_metric": "accuracy", "higher_is_better": True, "baseline": "dense"}
    count = len(digits()["test"][0])
    errors = [(score * (1 - score) / count) ** 0.5 for score in variants["dense"]["scores"]["merged"].values()]
    results |= {"seeds": seeds, "test_samples": count, "standard_error": fmean(errors), "variants": variants}
    if path:
        write_text(path, json.dumps(results, indent=2) + "\n")
    print(as_markdown(json.loads(json.dumps(results))))  # seeds become text, as in the file
