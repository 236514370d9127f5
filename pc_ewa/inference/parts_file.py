"""A segmented cloud as a PLY file that any viewer shows in colours."""

import colorsys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pc_ewa.errors import WriteError
from pc_ewa.files import write_whole
from pc_ewa.inference.predictions import PartPrediction

# Step on the circle of hues, by the golden ratio: parts with close numbers have hues that are far apart, and the colour
# of a part does not depend on the number of parts.
_GOLDEN = 0.381966
_ROW = np.dtype([("place", "<f4", 3), ("colour", "u1", 3), ("part", "<i4")])
_HEADER = """ply
format binary_little_endian 1.0
comment {category}, segmented by pc-ewa
element vertex {count}
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue
property int part
end_header
"""


def write_parts(prediction: PartPrediction, path: Path) -> None:
    """Write the points of a cloud to a PLY file, with the colour and the number of their parts.

    Raises:
        WriteError: the file cannot be written.
    """
    rows = np.empty(len(prediction.parts), _ROW)
    rows["place"], rows["part"] = prediction.points.numpy(), prediction.parts.numpy()
    rows["colour"] = part_colours(int(rows["part"].max()) + 1)[rows["part"]]
    # The header of a PLY file is lines of ASCII. A line break in the name would end the comment.
    category = "".join(letter for letter in prediction.category if letter.isascii() and letter.isprintable())
    header = _HEADER.format(category=category, count=len(rows)).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"{path.parent} cannot be made: {error.strerror}; choose another folder") from None
    write_whole(path, lambda file: file.write(header + rows.tobytes()))


def part_colours(count: int) -> NDArray[np.uint8]:
    """Return the colours of the parts 0 to count - 1, as (count, 3). A part has the same colour in every file."""
    hues = ((part * _GOLDEN) % 1 for part in range(count))
    return np.array([[round(255 * value) for value in colorsys.hsv_to_rgb(hue, 0.7, 0.9)] for hue in hues], np.uint8)
