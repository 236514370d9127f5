"""The camera of all pictures: an orthographic view from the front, slightly from the right and from above."""

import math
from typing import NamedTuple

import numpy as np

from pc_ewa.viz.scene import Floats, Scene

YAW, PITCH = math.radians(35), math.radians(22)
MARGIN = 1.08  # the picture is so many times wider than the sphere around the points

# Rows of one rotation matrix, a yaw about y and then a pitch. They are orthonormal: two dot products project a point.
_COS, _SIN = (math.cos(YAW), math.cos(PITCH)), (math.sin(YAW), math.sin(PITCH))
RIGHT = np.array([_COS[0], 0.0, -_SIN[0]])
UP = np.array([-_SIN[0] * _SIN[1], _COS[1], -_COS[0] * _SIN[1]])
FRONT = np.array([_SIN[0] * _COS[1], _SIN[1], _COS[0] * _COS[1]])  # from the points to the reader


class Projected(NamedTuple):
    """Points in the picture plane.

    Attributes:
        places: (N, 2) in the square from -1 to 1, y up.
        nearness: (N,) to the reader, from -1 to 1.
    """

    places: Floats
    nearness: Floats


def project(points: Floats, scene: Scene) -> Projected:
    """Project points (N, 3) of a scene. All panels of the scene share one scale and one center."""
    local = (points - scene.center) / scene.radius
    places = np.stack([local @ RIGHT, local @ UP], axis=1) / MARGIN
    return Projected(places.astype(np.float32), (local @ FRONT).astype(np.float32))
