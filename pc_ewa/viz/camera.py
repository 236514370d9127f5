"""The one view of all pictures: from the front, a little from the right and above, without perspective."""

import math
from typing import NamedTuple

import numpy as np

from pc_ewa.viz.scene import Floats, Scene

YAW, PITCH = math.radians(35), math.radians(22)
MARGIN = 1.08  # the picture is so many times wider than the sphere around the points

_COS, _SIN = (math.cos(YAW), math.cos(PITCH)), (math.sin(YAW), math.sin(PITCH))
RIGHT = np.array([_COS[0], 0.0, -_SIN[0]])
UP = np.array([-_SIN[0] * _SIN[1], _COS[1], -_COS[0] * _SIN[1]])
FRONT = np.array([_SIN[0] * _COS[1], _SIN[1], _COS[0] * _COS[1]])  # from the points to the reader


class Projected(NamedTuple):
    """Places (N, 2) in the square from -1 to 1, y up, and nearness (N,) to the reader from -1 to 1."""

    places: Floats
    nearness: Floats


def project(points: Floats, scene: Scene) -> Projected:
    """Project points (N, 3) of a scene; all its panels share scale and middle."""
    local = (points - scene.center) / scene.radius
    places = np.stack([local @ RIGHT, local @ UP], axis=1) / MARGIN
    return Projected(places.astype(np.float32), (local @ FRONT).astype(np.float32))
