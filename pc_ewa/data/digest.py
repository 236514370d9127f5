"""Digests of the data that a run saw, and the difference between two of them in words."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from pc_ewa.data.clouds import Clouds
from pc_ewa.text import printable

Digest = dict[str, Any]  # plain types: it is stored in checkpoints

_BYTES = 1 << 25  # of float32 coordinates in each split: all shapes of a small one, some of a large one
_FEWEST = 16  # shapes, however large they are
_LISTED = 3  # classes in a message


def digest(splits: Mapping[str, Clouds]) -> Digest:
    """Return what tells these splits from others, in some hundred bytes and well under a second.

    It holds class names, and of each split the number of samples, the number of points of each, the axis that points
    up, and hashes of all labels and of the coordinates and parts: of all shapes in up to 32 MiB, of shapes evenly
    spread over the split in more. The same shapes have the same digest wherever their files are.

    Args:
        splits: by name, such as {"train": ..., "test": ...}, all of one dataset.

    Example:
        >>> from pc_ewa.data import load_dataset
        >>> digest({"test": load_dataset("sweethome3d", "test")})["splits"]["test"]["samples"]
        154
    """
    names = next((clouds.class_names for clouds in splits.values()), ())
    return {"classes": list(names), "splits": {split: _of_split(clouds) for split, clouds in splits.items()}}


def short(whole: Digest) -> str:
    """Return a digest as 16 characters, for those who only ask if two are the same."""
    return hashlib.blake2b(json.dumps(whole, sort_keys=True).encode(), digest_size=8).hexdigest()


def _of_split(clouds: Clouds) -> dict[str, int | str]:
    """Return the entries of one split."""
    count, shape_bytes = len(clouds), clouds.num_points * 12
    some = min(count, max(_BYTES // shape_bytes, _FEWEST))
    indices = [i * (count - 1) // max(some - 1, 1) for i in range(some)]
    step = max(_BYTES // _FEWEST // shape_bytes, 1)  # shapes at a time
    points, parts = _Hash(), _Hash()
    for begin in range(0, some, step):
        chunk = indices[begin : begin + step]
        points.add(clouds.batch(chunk)[0])
        if clouds.parts is not None:
            parts.add(clouds.part_labels(chunk).to(torch.uint8))
    labels = _Hash()
    labels.add(clouds.labels)
    return {
        "samples": count,
        "points_per_sample": clouds.num_points,
        "up_axis": clouds.up_axis,
        "labels": labels.text(),
        "points": points.text(),
        "parts": parts.text() if clouds.parts is not None else "none",
    }


class _Hash:
    """A short hash of tensors of the same type on any machine."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=8)

    def add(self, tensor: torch.Tensor) -> None:
        array = tensor.cpu().contiguous().numpy()
        self._hash.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())

    def text(self) -> str:
        return self._hash.hexdigest()


def describe_change(before: Digest | None, after: Digest) -> str | None:
    """Say in a few words how data differ, such as "train has 10 samples, before 9"; None where they do not.

    Args:
        before: an earlier `digest`; None, as of a checkpoint from before there were any, differs from nothing.
        after: the one of now.
    """
    if before is None or before == after:
        return None
    if not _is_digest(before):
        return "what was noted of the data is damaged"
    changes = [*_classes_changed(before["classes"], after["classes"])]
    for split in sorted(before["splits"].keys() | after["splits"].keys()):
        if split not in after["splits"]:
            changes.append(f"there is no split {printable(split)} any more")
        elif split not in before["splits"]:
            changes.append(f"the split {printable(split)} is new")
        elif change := _split_changed(before["splits"][split], after["splits"][split]):
            changes.append(f"{printable(split)} has {change}")
    return "; ".join(changes) or None


def _is_digest(value: Any) -> bool:
    """Return True for what `digest` returns, also that of another version with other entries."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("classes"), list)
        and all(isinstance(name, str) for name in value["classes"])
        and isinstance(value.get("splits"), dict)
        and all(isinstance(split, str) and isinstance(entries, dict) for split, entries in value["splits"].items())
    )


def _classes_changed(before: list[str], after: list[str]) -> list[str]:
    if before == after:
        return []
    gone, new = ([name for name in one if name not in other] for one, other in ((before, after), (after, before)))
    if not gone and not new:
        return ["the classes are in another order"]
    told = ((gone, "gone"), (new, "new"))
    return [f"{word}: class{'es' if len(names) > 1 else ''} {_listed(names)}" for names, word in told if names]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(printable(name, 40) for name in names[:_LISTED]) + more


def _split_changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """Say the first difference: those that follow it follow from it, or may."""
    was, now = (printable(str(entries.get("samples"))) for entries in (before, after))
    if was != now:
        return f"{now} samples, before {was}"
    was, now = (printable(str(entries.get("points_per_sample"))) for entries in (before, after))
    if was != now:
        return f"{now} points per sample, before {was}"
    differing = [key for key in ("up_axis", "labels", "points", "parts") if before.get(key) != after.get(key)]
    words = {"up_axis": "another axis up", "labels": "other labels", "points": "other points", "parts": "other parts"}
    return " and ".join(words[key] for key in differing) or None
