"""Digests of the data of a run, and a description of the difference between two of them."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from pc_ewa.data.clouds import Clouds
from pc_ewa.text import printable

# Plain types only: a digest is stored in checkpoints, which are loaded with weights_only=True.
Digest = dict[str, Any]

# Bytes of float32 coordinates that are hashed in each split. This covers every shape of a small split, and a sample of
# evenly spaced shapes of a large one.
_BYTES = 1 << 25
_FEWEST = 16  # shapes that are hashed at least, however large they are
_LISTED = 3  # classes in a message


def digest(splits: Mapping[str, Clouds]) -> Digest:
    """Return a digest that identifies these splits, in a few hundred bytes and well under a second.

    It contains the class names and, for each split, the number of samples, the points per sample, the up axis, and
    hashes of the labels, coordinates and part labels. All labels are hashed. Coordinates of a split of up to 32 MiB
    are all hashed; of a larger split, those of evenly spaced shapes. The digest does not depend on file paths.

    Args:
        splits: splits of one dataset by name, such as {"train": ..., "test": ...}.

    Example:
        >>> test = pc_ewa.load_dataset("sweethome3d", "test")
        >>> pc_ewa.data.digest({"test": test})["splits"]["test"]["samples"]
        154
    """
    names = next((clouds.class_names for clouds in splits.values()), ())
    return {"classes": list(names), "splits": {split: _of_split(clouds) for split, clouds in splits.items()}}


def short(whole: Digest) -> str:
    """Return a digest as 16 hexadecimal characters, to compare two digests for equality."""
    return hashlib.blake2b(json.dumps(whole, sort_keys=True).encode(), digest_size=8).hexdigest()


def _of_split(clouds: Clouds) -> dict[str, int | str]:
    """Return the entries of one split."""
    count, shape_bytes = len(clouds), clouds.num_points * 12
    some = min(count, max(_BYTES // shape_bytes, _FEWEST))
    # Evenly spaced from the first shape to the last, in integers: floats could round differently elsewhere.
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
    """A short hash of tensors, equal on machines of either byte order."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=8)

    def add(self, tensor: torch.Tensor) -> None:
        array = tensor.cpu().contiguous().numpy()
        self._hash.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())

    def text(self) -> str:
        return self._hash.hexdigest()


def describe_change(before: Digest | None, after: Digest) -> str | None:
    """Describe how two datasets differ, such as "train has 10 samples, before 9". None means that they are equal.

    Args:
        before: an earlier `digest`. None, as in an old checkpoint without a digest, counts as equal.
        after: the current `digest`.

    Example:
        >>> test = pc_ewa.load_dataset("sweethome3d", "test")
        >>> before, after = (pc_ewa.data.digest({"test": part}) for part in (test, test.select(range(100))))
        >>> pc_ewa.data.describe_change(before, after)
        'test has 100 samples, before 154'
    """
    if before is None or before == after:
        return None
    if not _is_digest(before):
        return "the stored digest of the data is damaged"
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
    """Return True for a result of `digest`, including one of another version with other entries."""
    # The value comes from a checkpoint, which may have been edited: `describe_change` must not raise on any of it.
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
    """Describe the first difference, because later entries may differ only as its consequence."""
    was, now = (printable(str(entries.get("samples"))) for entries in (before, after))
    if was != now:
        return f"{now} samples, before {was}"
    was, now = (printable(str(entries.get("points_per_sample"))) for entries in (before, after))
    if was != now:
        return f"{now} points per sample, before {was}"
    differing = [key for key in ("up_axis", "labels", "points", "parts") if before.get(key) != after.get(key)]
    words = {"up_axis": "another axis up", "labels": "other labels", "points": "other points", "parts": "other parts"}
    return " and ".join(words[key] for key in differing) or None
