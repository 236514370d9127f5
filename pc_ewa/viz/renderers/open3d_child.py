"""The child process that draws panels by open3d, started by `by_open3d.py`, because open3d may crash its interpreter.

Usage: `open3d_child.py JOB.npz IMAGES.npz`, or with the first argument alone to show the job in a window. Exit code 3
means that no window or off-screen surface can be created.
"""

import sys
from typing import Any

NO_WINDOW = 3
FRAME = 2.0  # half the width of the box that the view is fitted to; points lie in the sphere of radius 1
# Antialiasing: panels up to 1,024 pixels wide are drawn at twice the size and averaged over 2x2 pixels.
_FINE, _FINE_SIDE = 2, 1024
# open3d clamps its field of view. At the narrowest angle, 5 degrees, it switches to an orthographic camera, and this
# step always reaches it.
_ORTHOGRAPHIC = -90.0


def main(job_path: str, images_path: str | None = None) -> int:
    """Draw every panel of a job into a file, or show the job in a window. Returns an exit code."""
    import numpy as np
    import open3d as o3d

    o3d.utility.set_verbosity_level(o3d.utility.VerbosityLevel.Error)
    with np.load(job_path) as job:
        arrays = {name: job[name] for name in job.files}
    images: dict[str, Any] = {}
    window: Any = None
    width = 0
    for index in range(int(arrays["panels"])):
        side = int(arrays[f"{index}:side"])
        fine = _FINE if images_path is not None and side <= _FINE_SIDE else 1
        if fine * side != width:
            # A captured image has the size of its window, so that another width takes another window.
            if window is not None:
                window.destroy_window()
            window, width = o3d.visualization.Visualizer(), fine * side
            if not window.create_window(visible=images_path is None, width=width, height=width):
                return NO_WINDOW  # any further call would be a segmentation fault
        for geometry in _geometries(o3d, arrays, index):
            window.add_geometry(geometry, reset_bounding_box=True)
        _look(window, arrays, index, fine)
        if images_path is None:
            window.run()
            break
        window.poll_events()
        window.update_renderer()
        image = np.asarray(window.capture_screen_float_buffer(do_render=True))
        image = image.reshape(side, fine, side, fine, 3).mean(axis=(1, 3))
        images[str(index)] = (255 * image).round().astype(np.uint8)
        window.clear_geometries()
    if images_path is not None:
        np.savez(images_path, **images)
    if window is not None:
        window.destroy_window()
    return 0


def _geometries(o3d: Any, arrays: dict[str, Any], index: int) -> list[Any]:
    """Return the geometries of a panel: its points, its large points as balls, and an invisible frame."""
    # Points of one open3d cloud have one size, so that larger ones are drawn as balls.
    points, colours, sizes = (arrays[f"{index}:{name}"] for name in ("points", "colours", "sizes"))
    plain = sizes <= 1
    vector = o3d.utility.Vector3dVector
    cloud = o3d.geometry.PointCloud(vector(points[plain].astype(float)))
    cloud.colors = vector(colours[plain].astype(float))
    balls = o3d.geometry.TriangleMesh()
    for point, colour, size in zip(points[~plain], colours[~plain], sizes[~plain], strict=True):
        ball = o3d.geometry.TriangleMesh.create_sphere(float(size * arrays[f"{index}:point_radius"]), resolution=8)
        balls += ball.translate(point.astype(float)).paint_uniform_color(colour.astype(float))
    # open3d fits the view to the bounding box of all geometries. A triangle without area gives every panel the same
    # box, large enough for balls at the edge of the unit sphere.
    corners = [[-FRAME] * 3, [FRAME] * 3, [-FRAME] * 3]
    frame = o3d.geometry.TriangleMesh(vector(corners), o3d.utility.Vector3iVector([[0, 1, 2]]))
    return [geometry for geometry in (cloud, balls, frame) if not geometry.is_empty()]


def _look(window: Any, arrays: dict[str, Any], index: int, fine: int) -> None:
    option, view = window.get_render_option(), window.get_view_control()
    option.point_size = fine * float(arrays[f"{index}:point_pixels"])
    option.background_color = [1.0, 1.0, 1.0]
    option.light_on = False
    view.change_field_of_view(step=_ORTHOGRAPHIC)
    view.set_lookat([0.0, 0.0, 0.0])
    view.set_front(arrays["front"])
    view.set_up(arrays["up"])
    view.set_zoom(float(arrays["zoom"]))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
