"""Colours that colour-blind readers can distinguish: eight for categories, a ramp for values.

The eight are those of Okabe and Ito (Color Universal Design, 2008), with a softer black, and with a darker yellow that
is visible on white. The ramp interpolates nine colours of cividis (Nunez, Anderton and Renslow, 2018).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pc_ewa.viz.scene import Floats

Colour = tuple[float, float, float]


def _rgb(text: str) -> Colour:
    red, green, blue = (int(text[i : i + 2], 16) / 255 for i in (0, 2, 4))
    return red, green, blue


BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW = map(
    _rgb, ("0072B2", "E69F00", "009E73", "D55E00", "CC79A7", "56B4E9", "E3D33B")
)
GREY, DARK, LIGHT = _rgb("8A8A8A"), _rgb("222222"), _rgb("C4C4C4")
KINDS: tuple[Colour, ...] = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, YELLOW, DARK)

_RAMP = np.array(
    [_rgb(c) for c in ("00224E", "123570", "3B496C", "575D6D", "707173", "8A8779", "A69D75", "C4B56C", "E4CF5B")]
)


def kind_colours(kinds: Any) -> Floats:
    """Return the colours (..., 3) of integer categories (...). Category 8 has the colour of category 0 again."""
    return np.asarray(KINDS, dtype=np.float32)[np.asarray(kinds) % len(KINDS)]


def ramp(values: Any, low: float, high: float) -> Floats:
    """Map values (...) to colours (..., 3), from dark blue at `low` to yellow at `high`."""
    # Equal values give low == high. Dividing by 1 then puts all of them at the low end, instead of NaN.
    share = np.clip((np.asarray(values, dtype=np.float64) - low) / (high - low if high > low else 1.0), 0, 1)
    place = np.linspace(0, 1, len(_RAMP))
    return np.stack([np.interp(share, place, channel) for channel in _RAMP.T], axis=-1).astype(np.float32)


def ramp_legend(title: str, low: float, high: float, digits: str = ".2g") -> dict[str, Colour]:
    """Return legend entries for both ends and the middle of a ramp."""
    values = (low, (low + high) / 2, high)
    colours = [as_colour(colour) for colour in ramp(np.array(values), low, high)]
    return {f"{title} {value:{digits}}": colour for value, colour in zip(values, colours, strict=True)}


def kind_legend(names: Sequence[str] | Mapping[int, str]) -> dict[str, Colour]:
    """Return the legend of categories, given their names in order, or a mapping from category to name."""
    pairs = names.items() if isinstance(names, Mapping) else enumerate(names)
    return {name: KINDS[kind % len(KINDS)] for kind, name in pairs}


def all_of(colour: Colour, count: int) -> Floats:
    """Repeat one colour for `count` points, (count, 3)."""
    return np.tile(np.asarray(colour, dtype=np.float32), (count, 1))


def by_height(points: Floats) -> Floats:
    """Colour points (N, 3), y up, by their height."""
    height = points[:, 1]
    return ramp(height, float(height.min()), float(height.max()))


def neighbour_colours(centers: Floats, neighbours: int = 6) -> NDArray[np.int64]:
    """Colour patches with centers (G, 3) by categories 0 to 6, so that near patches differ, as countries on a map.

    This is greedy graph colouring: two patches are neighbours if either is among the `neighbours` nearest of the other.
    """
    distances = ((centers[:, None] - centers[None]) ** 2).sum(-1)
    order = distances.argsort(axis=1, kind="stable")[:, 1 : neighbours + 1]
    kinds = np.full(len(centers), -1)
    for i in range(len(centers)):
        # "Nearest" is not symmetric: also look at those that have patch i among their nearest.
        taken = {int(kinds[j]) for j in (*order[i], *np.nonzero((order == i).any(1))[0]) if kinds[j] >= 0}
        free = [kind for kind in range(len(KINDS) - 1) if kind not in taken]
        # Take the least used free category, so that all colours occur. If none is free, take the least used of all.
        counts = np.bincount(kinds[kinds >= 0], minlength=len(KINDS))
        kinds[i] = min(free or range(len(KINDS) - 1), key=lambda kind: (counts[kind], kind))
    return kinds


def as_colour(colour: NDArray[Any]) -> Colour:
    """Convert one colour (3,) to a tuple of Python floats."""
    red, green, blue = (float(channel) for channel in colour)
    return red, green, blue


def as_hex(colour: Sequence[float]) -> str:
    """Format a colour as in "#0072b2"."""
    return "#" + "".join(f"{round(255 * float(channel)):02x}" for channel in colour)
