"""What is in the pictures: colours at projected places, the same in both renderers, and the words beside them."""

import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from pc_ewa.errors import ConfigError
from pc_ewa.viz import Chart, Panel, Scene, draw, drawing, show_now, upright
from pc_ewa.viz.camera import RIGHT, UP, project
from pc_ewa.viz.colours import BLUE, GREEN, ORANGE, VERMILION, kind_colours, neighbour_colours, ramp
from pc_ewa.viz.renderers import by_matplotlib, by_open3d, by_plotly, open3d_child
from pc_ewa.viz.renderers.sheet import Sheet

SIDE = 128
COLOURS = np.array([BLUE, ORANGE, GREEN, VERMILION])


@pytest.fixture(autouse=True)
def forget_what_was_said() -> Iterator[None]:
    drawing._said.clear()
    yield
    drawing._said.clear()


def corners(shift: float = 0.0) -> Panel:
    """Four points that no other hides, and a large one."""
    points = np.array([[0, 1, 0], [1, 0, 0], [-1, 0, 0], [0, -1, 0.3]], dtype=np.float32) + np.float32(shift)
    return Panel(points, COLOURS, "four $points$ <b>", np.array([1.0, 1, 1, 2.5]))


def scene() -> Scene:
    return Scene("title", [corners(), corners(0.1)], {"up": BLUE, "right": ORANGE})


def assert_colours_are_at_their_places(path: Path, drawn: Scene) -> None:
    """Every point's pixel has its colour, in every panel."""
    sheet = Sheet(drawn, SIDE)
    image = np.asarray(Image.open(path).convert("RGB")) / 255
    assert image.shape[:2] == (sheet.height, sheet.width)
    for axes, panel in zip(sheet.axes, drawn.panels, strict=True):
        box = axes.get_position()
        for (x, y), colour in zip(project(panel.points, drawn).places, panel.colours, strict=True):
            column = (box.x0 + box.width * (x + 1) / 2) * sheet.width
            row = (1 - box.y0 - box.height * (y + 1) / 2) * sheet.height
            np.testing.assert_allclose(image[int(row), int(column)], colour, atol=0.06)
    assert (image[sheet.height // 2, 0] == 1).all()  # the ground is white


def test_matplotlib_puts_colours_at_projected_places(tmp_path: Path) -> None:
    draw([(scene(), tmp_path / "a.png")], "matplotlib", SIDE)
    assert_colours_are_at_their_places(tmp_path / "a.png", scene())


def test_open3d_draws_the_same_and_several_files_in_one_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: calls.append(a) or run(*a, **k))
    caplog.set_level(logging.INFO, "pc_ewa.viz")
    other = Scene("", [corners()])
    draw([(scene(), tmp_path / "a.png"), (other, tmp_path / "b.png")], "open3d", SIDE)
    assert_colours_are_at_their_places(tmp_path / "a.png", scene())
    assert_colours_are_at_their_places(tmp_path / "b.png", other)
    assert len(calls) == 1
    assert [record.args[0] for record in caplog.records] == ["open3d"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (f"sys.exit({open3d_child.NO_WINDOW})", "neither a display nor EGL"),
        ("import os; os.abort()", "signal 6"),
        ("raise ImportError('libusb-1.0.so.0 is missing')", "libusb-1.0.so.0"),
        ("", "wrote no picture"),
        ("import time; time.sleep(60)", "within"),
    ],
)
def test_matplotlib_stands_in_for_an_open3d_that_fails_and_says_why_once(
    code: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    child = tmp_path / "child.py"
    child.write_text(f"import sys\n{code}\n")
    monkeypatch.setattr(open3d_child, "__file__", str(child))
    monkeypatch.setattr(by_open3d, "SECONDS", 0.5 if "sleep" in code else 60)
    caplog.set_level(logging.INFO, "pc_ewa.viz")
    draw([(scene(), tmp_path / "a.png")], side=SIDE)
    draw([(scene(), tmp_path / "a.png")], side=SIDE)
    assert_colours_are_at_their_places(tmp_path / "a.png", scene())
    (record,) = caplog.records
    assert record.args[0] == "matplotlib"
    assert reason in record.args[1]
    assert "libegl1" in record.args[1]
    with pytest.raises(ConfigError, match=reason):
        draw([(scene(), tmp_path / "a.png")], "open3d", SIDE)


def test_words_are_on_the_sheet_as_they_are() -> None:
    figure = by_matplotlib.fill(scene(), SIDE).figure
    words = [text.get_text().replace("\n", " ") for text in figure.texts]
    assert words == ["title", *[r"four \$points\$ <b>"] * 2]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["up", "right"]


def test_titles_are_broken_and_words_cut_until_they_fit() -> None:
    """Whatever the letters: nothing reaches over the edge of its panel or of the sheet."""
    long = "a title of many words that is much too wide for the small sheet " + "W" * 80
    figure = by_matplotlib.fill(Scene(long, [Panel(corners().points, COLOURS, long)] * 2, {long: BLUE}), SIDE).figure
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    title, *captions = [text.get_window_extent() for text in figure.texts]
    (legend,) = figure.legends
    boxes = [(title, 0, 2 * SIDE), (captions[0], 0, SIDE), (captions[1], SIDE, 2 * SIDE)]
    for box, left, right in [*boxes, (legend.get_window_extent(), 0, 2 * SIDE)]:
        assert left <= box.x0 < box.x1 <= right
    assert title.y0 > captions[0].y1
    assert title.y1 <= figure.bbox.height


def test_panels_fill_their_rows() -> None:
    grids = {count: Scene("", [corners()] * count).grid for count in (1, 2, 3, 4, 5, 7, 18)}
    assert grids == {1: (1, 1), 2: (1, 2), 3: (1, 3), 4: (2, 2), 5: (2, 3), 7: (2, 4), 18: (3, 6)}


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_vector_files_are_the_same_each_time(kind: str, tmp_path: Path) -> None:
    draw([(scene(), tmp_path / f"{name}.{kind}") for name in "ab"])
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_plotly_has_the_points_and_no_remote_address(tmp_path: Path) -> None:
    figure = by_plotly.figure_of(scene())
    clouds = [trace for trace in figure.data if trace.x[0] is not None]
    np.testing.assert_allclose(np.stack([clouds[1].x, clouds[1].y, clouds[1].z], 1), scene().panels[1].points)
    assert list(clouds[0].marker.color) == ["#0072b2", "#e69f00", "#009e73", "#d55e00"]
    assert [trace.name for trace in figure.data if trace.x[0] is None] == ["up", "right"]
    assert figure.layout.annotations[0].text == "four $points$ &lt;b>"
    first, second = figure.layout.scene.domain, figure.layout.scene2.domain
    assert first.x[1] <= second.x[0]
    for note, domain in zip(figure.layout.annotations, (first, second), strict=True):
        assert domain.x[0] < note.x < domain.x[1]
        assert note.y == domain.y[1]
    width, height = figure.layout.width, figure.layout.height
    assert (first.x[1] - first.x[0]) * width == pytest.approx((first.y[1] - first.y[0]) * height)  # a square
    draw([(scene(), tmp_path / "a.html")])
    page = (tmp_path / "a.html").read_text()
    assert '<script src="' not in page


def test_up_is_up_and_right_is_right() -> None:
    """Whatever the up axis of the data, and nothing is mirrored."""
    for axis in "xyz":
        turned = upright(np.eye(3), axis)
        assert turned["xyz".index(axis)].tolist() == [0, 1, 0]
        assert np.linalg.det(turned) == pytest.approx(1)
    np.testing.assert_allclose([RIGHT @ UP, RIGHT @ RIGHT, UP @ UP], [0, 1, 1], atol=1e-12)
    places = project(np.array([[0, 1, 0], [0, -1, 0], [1, 0, 0]], dtype=np.float32), scene()).places
    assert places[0, 1] > places[1, 1]
    assert places[2, 0] > places[0, 0]


def test_panels_share_the_scale() -> None:
    large = Panel(2 * corners().points, COLOURS)
    small, other = (project(corners().points, Scene("", panels)).places for panels in ([corners()], [corners(), large]))
    assert np.ptp(other[:, 1]) < 0.7 * np.ptp(small[:, 1])


def test_neighbouring_patches_differ() -> None:
    centers = np.random.RandomState(0).uniform(-1, 1, (64, 3)).astype(np.float32)
    kinds = neighbour_colours(centers)
    nearest = ((centers[:, None] - centers[None]) ** 2).sum(-1).argsort(1)[:, 1:4]
    assert (kinds[:, None] != kinds[nearest]).mean() > 0.98
    assert set(kinds) <= set(range(7))


def test_kinds_and_the_ramp_are_told_apart_by_the_colour_blind() -> None:
    """As dichromats see them (Viénot, Brettel and Mollon, 1999), in linear light; the ramp grows lighter."""
    linear = np.where(
        kind_colours(range(7)) <= 0.04045,
        kind_colours(range(7)) / 12.92,
        ((kind_colours(range(7)) + 0.055) / 1.055) ** 2.4,
    )
    protan = linear @ np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]).T
    deutan = linear @ np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]).T
    for seen in (protan, deutan):
        seen = np.clip(seen, 0, 1) ** (1 / 2.2)
        distances = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + np.eye(len(seen))
        assert distances.min() > 0.08
    light = ramp(np.linspace(0, 1, 20), 0, 1) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) > 0).all()


def test_a_chart_is_a_file_with_its_lines(tmp_path: Path) -> None:
    chart = Chart("spread", "steps", "y", {"layer_1": ([1, 2], [0.1, 0.2]), "layer_2": ([1], [0.3])})
    draw([(chart, tmp_path / "chart.svg")])
    draw([(chart, tmp_path / "chart.png")], "auto")
    assert (tmp_path / "chart.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ConfigError, match="chart"):
        draw([(chart, tmp_path / "chart.html")])


@pytest.mark.parametrize(
    ("name", "renderer", "part"),
    [
        ("a.gif", "auto", ".png"),
        ("a", "auto", ".png"),
        ("no/a.png", "auto", "not there"),
        ("a.html", "open3d", ".png"),
        ("a.png", "plotly", ".html"),
        ("a.png", "pencil", "pencil"),
        (".", "auto", ".png"),
    ],
)
def test_a_picture_that_cannot_be_is_refused(name: str, renderer: str, part: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=part):
        draw([(scene(), tmp_path / name)], renderer)  # type: ignore[arg-type]


def test_without_a_display_a_window_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(ConfigError, match=r"-o picture\.png"):
        show_now(scene())


def test_points_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        Panel(np.array([[np.nan, 0, 0]]), COLOURS[:1])
    with pytest.raises(ValueError, match=r"\(N, 3\)"):
        Panel(np.zeros((2, 3)), COLOURS[:1])
    with pytest.raises(ValueError, match="panel"):
        Scene("", [])
