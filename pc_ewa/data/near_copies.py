"""Detection of copies of one object in a folder of shapes.

Copies in two splits inflate the score, and the labels of copies in two classes contradict each other. A copy is found
by its geometry, which may be moved, rotated, mirrored or scaled, or by a name such as `cup_copy`.
"""

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Sized
from os.path import splitext

import numpy as np
from numpy.typing import NDArray

from pc_ewa.data.formats.readers import Shape
from pc_ewa.data.source import Item
from pc_ewa.data.split_names import SPLITS
from pc_ewa.text import printable

# Tolerance of each invariant. Rounding coordinates to 1e-5 of the shape's size changes an invariant by 1e-5 or less.
# The nearest pair among the 613 bundled pieces of furniture, two wall plugs, differs by 3.6e-3; the nearest pair of 300
# random boxes of 10,000 points by 4.6e-4.
_TOLERANCE = 1e-4
# Points or triangles that are measured. A larger shape is strided, so its copies in another order are not detected.
_MOST_POINTS = 1 << 17
_LISTED = 5  # pairs in a message

# Words that programs and people add to the name of a copy.
_COPY, _TURNED = "copy|kopie|copie", "rot|rotated?|mirror(?:ed)?|flip(?:ped)?"
_CHANGED = "dup|duplicate|aug(?:mented)?|jitter(?:ed)?|noisy|noise"
_WORD_MARK = re.compile(
    rf"[\s_.-]+(?:{_COPY}|{_TURNED}|{_CHANGED})(?:[\s_.-]*[xyz])?[\s_.-]*\d*(?:deg)?$"
    rf"|^(?:{_COPY})[\s_]+(?:of|von|de)[\s_]+"
)
# A number may also count objects, "cup (1)" and "cup (2)". It marks a copy only if the bare name, "cup", exists too.
_NUMBER_MARK = re.compile(r"\s*\(\d+\)$|[\s_.-]+v\d+$")


class NearCopies:
    """A collection of geometric invariants of shapes, to find copies among them.

    Example:
        >>> copies = NearCopies()
        >>> opened = source("scans", seen=copies.add)  # doctest: +SKIP
        >>> convert(opened, "scans.h5")  # doctest: +SKIP
        >>> copies.notes(opened.items, opened.class_names)  # doctest: +SKIP
    """

    def __init__(self) -> None:
        # Keyed by properties that copies share exactly: mesh or cloud, and the number of triangles or points.
        self._measures: dict[tuple[bool, int], list[tuple[str, NDArray[np.float64]]]] = defaultdict(list)

    def add(self, name: str, shape: Shape) -> None:
        """Measure a shape, as read from its file."""
        kind = (shape.faces is not None, len(shape.vertices if shape.faces is None else shape.faces))
        self._measures[kind].append((name, _measure(shape)))

    def notes(self, items: Iterable[Item], class_names: Sequence[str]) -> list[str]:
        """Return notes about copies for the user, one line per kind of evidence.

        Args:
            items: the shapes in use; other measured shapes are ignored.
            class_names: name of the class of each label.
        """
        used = {item.name: item for item in items}
        alike = ([used[name] for name in group if name in used] for group in self._alike())
        groups = [group for group in alike if group]
        twins = _twins(used)
        return [
            *_contradictions(groups, class_names),
            *_leaks(used, [same for group in groups for same in _by_label(group)], twins),
            *_stored_twice(twins),
        ]

    def _alike(self) -> list[list[str]]:
        return [group for measured in self._measures.values() for group in _group(measured)]


def _measure(shape: Shape) -> NDArray[np.float64]:
    """Return invariants of a shape, about 0 to 1, under translation, scaling, rotation and reflection.

    They do not depend on the order of points and vertices, nor on how often a format stores a shared vertex. A mesh is
    represented by the midpoints of the edges of its triangles, weighted by area.
    """
    # The three edge midpoints with equal weights integrate polynomials of degree 2 over a triangle exactly, so the
    # first and second moments are those of the surface and do not depend on how it is cut into triangles.
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
    # Centring removes translation, and the root mean square radius removes scale.
    points = points - weights @ points
    size = np.sqrt(weights @ (points**2).sum(1))
    points = points / (size or 1.0)
    squares = (points**2).sum(1)
    radii = np.sqrt(squares)
    # Radii, eigenvalues of the second moment and norms of vectors do not change under rotation and reflection.
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
    """Return groups of two or more shapes whose invariants are within the tolerance of those of the group's leader."""
    rows = np.stack([row for _, row in measured])
    # Sort by the invariant with the largest spread: then few leaders are within the tolerance and must be compared,
    # and n shapes need about n log n steps instead of n squared.
    rows = rows[:, np.argsort(-rows.std(0))]
    groups: list[list[str]] = []
    # The first invariant of the leader of each group. Shapes are visited in its order, so the list ascends.
    first: list[float] = []
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
    """Return groups of shapes with the same name, apart from marks of a copy in at least one of them."""
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
    """Return a name without its marks of a copy, and the kind of mark: "word", "number" or ""."""
    sign, before = "", None
    # Until nothing is left to strip, as in "cup_rot90_copy (2)".
    while before != stem:
        before = stem
        for pattern, kind in ((_WORD_MARK, "word"), (_NUMBER_MARK, "number")):
            bare = pattern.sub("", stem)
            if bare and bare != stem:
                stem, sign = bare, "word" if "word" in (sign, kind) else kind
    return stem, sign


def _by_label(group: Iterable[Item]) -> list[list[Item]]:
    """Return the shapes of a group that have the same label, the most frequent label first."""
    labels: dict[int, list[Item]] = defaultdict(list)
    for item in group:
        labels[item.label].append(item)
    return sorted(labels.values(), key=len, reverse=True)


def _contradictions(groups: Iterable[Sequence[Item]], class_names: Sequence[str]) -> list[str]:
    """Return a note on copies with different labels, whatever their split."""
    pairs: list[tuple[Item, Item]] = []
    for first, *others in map(_by_label, groups):
        pairs += ((first[0], item) for other in others for item in other)
    if not pairs:
        return []
    shown = "; ".join(
        " and ".join(f"{printable(item.name)} ({printable(class_names[item.label])}, {item.split})" for item in pair)
        for pair in pairs[:_LISTED]
    )
    more = f"; and {len(pairs) - _LISTED:,} more" if len(pairs) > _LISTED else ""
    return [
        f"contradictory labels: {_shapes(pairs)} all but equal to one of another class, up to position, size, rotation "
        f"and reflection: {shown}{more}; correct the label, or remove one"
    ]


def _leaks(used: Mapping[str, Item], groups: Iterable[Sequence[Item]], twins: Iterable[Sequence[str]]) -> list[str]:
    """Return notes on copies in two splits, by their geometry and by their names."""
    alike = _across(groups)
    named = _across([*_named_as_copies(used.values()), *([used[name] for name in group] for group in twins)])
    # Report each shape once; the geometry is the stronger evidence.
    named = {name: first for name, first in named.items() if name not in alike}
    notes = []
    for found, how in ((alike, "all but equal to"), (named, "by name a copy of")):
        if found:
            pair = " and ".join(f"{printable(name)} ({used[name].split})" for name in next(iter(found.items())))
            notes.append(
                f"near-copies: {_shapes(found)} {how} one of another split, such as {pair}; a score on these means "
                "little; keep copies in one split: --group-by REGEX, where splits are drawn"
            )
    return notes


def _stored_twice(twins: Sequence[Sequence[str]]) -> list[str]:
    """Return a note on shapes that exist in two formats."""
    if not twins:
        return []
    pair = " and ".join(printable(name) for name in twins[0][:2])
    return [f"stored twice: {_shapes(twins)} there in two formats, such as {pair}, and count twice; keep one"]


def _across(groups: Iterable[Sequence[Item]]) -> dict[str, str]:
    """Return each shape that has a copy in another split, with that copy, preferably one in train."""
    found: dict[str, str] = {}
    for group in groups:
        ordered = sorted(group, key=lambda item: item.split != "train")
        found.update({item.name: ordered[0].name for item in ordered if item.split != ordered[0].split})
    return found


def _twins(names: Iterable[str]) -> list[list[str]]:
    """Return groups of files whose names differ only in the extension."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[splitext(name)[0]].append(name)
    return [group for group in groups.values() if len(group) > 1]


def _shapes(found: Sized) -> str:
    return "1 shape is" if len(found) == 1 else f"{len(found):,} shapes are"
