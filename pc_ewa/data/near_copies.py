"""Copies of one object in a folder of your own shapes: in two splits they make a score too good.

A copy is found by its geometry, wherever it was moved, turned, mirrored or scaled to, or by a name that says so.
"""

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence, Sized
from os.path import splitext

import numpy as np
from numpy.typing import NDArray

from pc_ewa.data.formats.readers import Shape
from pc_ewa.data.source import Item
from pc_ewa.data.split_names import SPLITS
from pc_ewa.text import printable

# Of a measure. Coordinates rounded to 1e-5 of the shape's size change a measure by 1e-5 or less; the nearest of all
# pairs among the 613 bundled pieces of furniture, two wall plugs, differ by 3.6e-3, those of 300 random boxes of 10,000
# points by 4.6e-4.
_TOLERANCE = 1e-4
_MOST_POINTS = 1 << 17  # to measure; of more, some are taken, which finds no copies in another order

# What programs and people add to the name of a copy.
_COPY, _TURNED = "copy|kopie|copie", "rot|rotated?|mirror(?:ed)?|flip(?:ped)?"
_CHANGED = "dup|duplicate|aug(?:mented)?|jitter(?:ed)?|noisy|noise"
_WORD_MARK = re.compile(
    rf"[\s_.-]+(?:{_COPY}|{_TURNED}|{_CHANGED})(?:[\s_.-]*[xyz])?[\s_.-]*\d*(?:deg)?$"
    rf"|^(?:{_COPY})[\s_]+(?:of|von|de)[\s_]+"
)
# A number may as well count objects, "cup (1)", "cup (2)": it makes a copy only where the name without it is there.
_NUMBER_MARK = re.compile(r"\s*\(\d+\)$|[\s_.-]+v\d+$")


class NearCopies:
    """What there is to know of shapes to find copies among them.

    Example:
        >>> copies = NearCopies()
        >>> opened = source("scans", seen=copies.add)  # doctest: +SKIP
        >>> convert(opened, "scans.h5")  # doctest: +SKIP
        >>> copies.notes(opened.items)  # doctest: +SKIP
    """

    def __init__(self) -> None:
        # By what copies have in common exactly: mesh or cloud, and the number of triangles or points.
        self._measures: dict[tuple[bool, int], list[tuple[str, NDArray[np.float64]]]] = defaultdict(list)

    def add(self, name: str, shape: Shape) -> None:
        """Measure a shape, as it was read from its file."""
        kind = (shape.faces is not None, len(shape.vertices if shape.faces is None else shape.faces))
        self._measures[kind].append((name, _measure(shape)))

    def notes(self, items: Iterable[Item]) -> list[str]:
        """Return what the user should know of copies, a line for each way in which they were found.

        Args:
            items: the shapes that are used; others do not count.
        """
        used = {item.name: item for item in items}
        twins = _twins(used)
        alike = _across([used[name] for name in group if name in used] for group in self._alike())
        named = _across([*_named_as_copies(used.values()), *([used[name] for name in group] for group in twins)])
        named = {name: first for name, first in named.items() if name not in alike}
        notes = []
        for found, how in ((alike, "all but equal to"), (named, "by name a copy of")):
            if found:
                pair = " and ".join(f"{printable(name)} ({used[name].split})" for name in next(iter(found.items())))
                notes.append(
                    f"near-copies: {_shapes(found)} {how} one of another split, such as {pair}; a score on these says "
                    "little; keep copies in one split: --group-by REGEX, where splits are drawn"
                )
        if twins:
            pair = " and ".join(printable(name) for name in twins[0][:2])
            notes.append(
                f"stored twice: {_shapes(twins)} there in two formats, such as {pair}, and count twice; keep one"
            )
        return notes

    def _alike(self) -> list[list[str]]:
        return [group for measured in self._measures.values() for group in _group(measured)]


def _measure(shape: Shape) -> NDArray[np.float64]:
    """Return numbers, about 0 to 1, that are the same wherever a shape is, however large, turned or mirrored.

    The order of points and vertices plays no part, nor do vertices that formats store once or many times: a mesh counts
    by the midpoints of the edges of each triangle, which give the moments of its surface up to the second exactly.
    """
    points, weights = shape.vertices, None
    if shape.faces is not None:
        corners = points[shape.faces[:: len(shape.faces) // _MOST_POINTS + 1]]
        areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
        points = ((corners + np.roll(corners, 1, 1)) / 2).reshape(-1, 3)
        weights = np.repeat(areas, 3) if areas.any() else None
    else:
        points = points[:: len(points) // _MOST_POINTS + 1]
    weights = np.full(len(points), 1.0) if weights is None else weights
    weights = weights / weights.sum()
    points = points - weights @ points
    size = np.sqrt(weights @ (points**2).sum(1))
    points = points / (size or 1.0)
    squares = (points**2).sum(1)
    radii = np.sqrt(squares)
    second = (points * weights[:, None]).T @ points
    third = (weights * squares) @ points
    spread = np.linalg.eigvalsh(second)
    return np.array(
        [
            weights @ radii,
            weights @ (squares * radii),
            weights @ squares**2 / 2,
            radii.max() / 2,
            spread[2],
            spread[1],
            np.linalg.norm(third),
            np.linalg.norm(second @ third),
        ]
    )


def _group(measured: Sequence[tuple[str, NDArray[np.float64]]]) -> list[list[str]]:
    """Return groups of two shapes or more whose measures are within the tolerance of those of one of them."""
    rows = np.stack([row for _, row in measured])
    rows = rows[:, np.argsort(-rows.std(0))]  # the number that tells most comes first
    groups: list[list[str]] = []
    first: list[float] = []  # of the shape that stands for each group: they ascend
    leaders: list[int] = []
    for k in np.argsort(rows[:, 0], kind="stable"):
        begin = bisect_left(first, rows[k, 0] - _TOLERANCE)
        near = np.abs(rows[leaders[begin:]] - rows[k]).max(1, initial=0) <= _TOLERANCE
        if near.any():
            groups[begin + int(near.argmax())].append(measured[k][0])
        else:
            groups.append([measured[k][0]])
            first.append(float(rows[k, 0]))
            leaders.append(int(k))
    return [group for group in groups if len(group) > 1]


def _named_as_copies(items: Iterable[Item]) -> list[list[Item]]:
    """Return groups of shapes of which one has the name of another, and something that says copy."""
    groups: dict[tuple[int, str], list[Item]] = defaultdict(list)
    signs: dict[tuple[int, str], set[str]] = defaultdict(set)
    for item in items:
        *folders, name = item.name.casefold().split("/")
        bare, sign = _without_marks(splitext(name)[0])
        place = "/".join(folder for folder in folders if folder not in SPLITS)
        groups[item.label, f"{place}/{bare}"].append(item)
        signs[item.label, f"{place}/{bare}"].add(sign)
    return [group for key, group in groups.items() if "word" in signs[key] or {"", "number"} <= signs[key]]


def _without_marks(stem: str) -> tuple[str, str]:
    """Return a name without all that says copy, and what said so: a "word", a "number" or ""."""
    sign, before = "", None
    while before != stem:
        before = stem
        for pattern, kind in ((_WORD_MARK, "word"), (_NUMBER_MARK, "number")):
            bare = pattern.sub("", stem)
            if bare and bare != stem:
                stem, sign = bare, "word" if "word" in (sign, kind) else kind
    return stem, sign


def _across(groups: Iterable[Sequence[Item]]) -> dict[str, str]:
    """Return the shapes that have a copy in another split, and that copy, in train if there is one."""
    found: dict[str, str] = {}
    for group in groups:
        ordered = sorted(group, key=lambda item: item.split != "train")
        found.update({item.name: ordered[0].name for item in ordered if item.split != ordered[0].split})
    return found


def _twins(names: Iterable[str]) -> list[list[str]]:
    """Return groups of files that differ in nothing but the ending of their names."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[splitext(name)[0]].append(name)
    return [group for group in groups.values() if len(group) > 1]


def _shapes(found: Sized) -> str:
    return "1 shape is" if len(found) == 1 else f"{len(found):,} shapes are"
