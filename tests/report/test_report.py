"""The report page: what is in it, that names stay text, and, where Chromium is found, that it works in a browser."""

import base64
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pc_ewa.cli import report as command
from pc_ewa.errors import ConfigError
from pc_ewa.eval import Accuracy, Segmentation
from pc_ewa.eval.metric import LOSS
from pc_ewa.report import report_after, write_report
from pc_ewa.report.charts import chart_svg
from pc_ewa.report.html import Html, element, markdown, table
from pc_ewa.report.live import live
from pc_ewa.report.sections import about_errors, confusion, curves, per_category, per_class
from pc_ewa.viz import Chart, Panel, Scene
from pc_ewa.viz.camera import PITCH, YAW

EVIL = "</script><img src=x onerror=alert(1)>\u202e & \"'"


class Page(HTMLParser):
    """Elements with their attributes, and the text of each."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.elements.append((tag, dict(attributes)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open:
            self.text.setdefault(self._open[-1], []).append(data)


@pytest.fixture(scope="module")
def page(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report on a finished run of a classifier, and on a copy of it with another seed that has no checkpoints."""
    folder = tmp_path_factory.mktemp("report")
    copy = folder / "<b>other"
    shutil.copytree(trained.folder, copy, ignore=shutil.ignore_patterns("checkpoints", "summary.json"))
    assert command.main([str(trained.folder), str(copy), "-o", str(folder / "report.html")]) == 0
    return (folder / "report.html").read_text()


def test_the_page_has_every_section_and_every_number(page: str, trained: Any) -> None:
    parsed = Page(page)
    first = ["2 runs", "run"]
    assert parsed.text["h1"] == [*first, "<b>other"]
    wanted = ["Test", "Training", "Classes", "Confusions", "Attention", "Experts", "Costs", "Config and environment"]
    assert set(wanted) <= set(parsed.text["h2"])
    value = f"{trained.summary['test_accuracy_merged']:.1%}"
    assert any(cell.startswith(value) and "±" in cell for cell in parsed.text["td"])
    assert {"sphere", "cube", "torus"} <= set(parsed.text["th"])
    labels = [
        attributes["aria-label"] or ""
        for tag, attributes in parsed.elements
        if tag == "figure" and "role" in attributes
    ]
    for title in ("loss", "accuracy, %", "learning rate", "share rate", "spread of the experts"):
        assert any(label.startswith(title) for label in labels)
    assert "num_experts: 2" in page
    assert "This run has not come to its end" in page


def test_what_stands_behind_plus_minus_is_said_once(page: str, trained: Any) -> None:
    parsed = Page(page)
    (line,) = [text for text in parsed.text["p"] if text.startswith("± is the standard error")]
    assert f"{trained.summary['test_samples']} test samples" in line
    assert about_errors({"test_samples": 3, "test_loss_merged": 0.1}) == []


def test_a_segmenter_has_a_table_of_its_classes() -> None:
    score = Segmentation(torch.tensor([0.5, 0.7, 0.2]), torch.tensor([0, 0, 1]), ("a", EVIL, "none"), 5, 10)
    rows = Page(per_category(score))
    assert rows.text["td"] == ["60.0%", "2", "20.0%", "1", "46.7%", "3"]
    assert rows.text["th"] == ["class", "mean IoU", "samples", "a", EVIL.replace("\u202e", "?"), "all"]


def test_a_loss_that_ends_flat_is_logarithmic() -> None:
    steep = [{"step": step, "loss": 1 / step**2} for step in range(1, 9)]
    charts = {chart.title: log for chart, log in curves(steep, LOSS)}
    assert charts == {"loss": True}
    assert not next(log for _, log in curves([{"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.0}], LOSS))


def test_its_clouds_are_the_shapes(page: str, trained: Any) -> None:
    canvases = [attributes for tag, attributes in Page(page).elements if tag == "canvas"]
    wrong = trained.summary["test_samples"] - trained.summary["test_correct_merged"]
    assert sum(" taken for " in (c["aria-label"] or "") for c in canvases) == min(8, wrong)
    kinds = ["nearest" in (c["aria-label"] or "") for c in canvases[: 2 * min(8, wrong)]]
    assert kinds == [False, True] * min(8, wrong)
    for canvas in canvases:
        xyz, rgb, size = (base64.b64decode(canvas[f"data-{name}"] or "") for name in ("xyz", "rgb", "size"))
        assert len(xyz) == 6 * len(size)
        assert len(rgb) == 3 * len(size)
        assert canvas["tabindex"] == "0"


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\((?!#)", page)
    assert "default-src 'none'" in page
    assert len(page) < 3e6
    for tag, attributes in Page(page).elements:
        assert not {"src", "srcset", "onclick"} & attributes.keys(), tag
        assert (attributes.get("href") or "#").startswith("#")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="the optional package chromium is not installed")
@pytest.mark.parametrize("width", [1280, 500])
def test_it_works_in_a_browser(page: str, width: int, tmp_path: Path) -> None:
    """No error, no sideways scroll; a cloud turns by pointer and by keys. Headless Chromium is at least 500 wide."""
    probe = """<script>
    const errors = []; addEventListener("error", event => errors.push(event.message));
    requestAnimationFrame = task => setTimeout(task);  // there are no frames without a window
    HTMLElement.prototype.setPointerCapture = () => {};  // made-up pointers cannot be captured
    addEventListener("load", () => setTimeout(async () => {
      const canvas = document.querySelector("canvas"), frame = () => new Promise(done => setTimeout(done, 60));
      const looks = [canvas.toDataURL()];
      const point = (kind, x) => canvas.dispatchEvent(new PointerEvent(kind, {pointerId: 1, clientX: x, clientY: 9}));
      point("pointerdown", 0); point("pointermove", 40); point("pointerup", 40);
      await frame(); looks.push(canvas.toDataURL());
      canvas.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowUp"}));
      await frame(); looks.push(canvas.toDataURL());
      const wide = document.documentElement.scrollWidth > innerWidth;
      document.title = JSON.stringify({errors, looks: new Set(looks).size, wide});
    }, 150));</script>"""
    file = tmp_path / "page.html"
    file.write_text(page.replace("<head>", f"<head>{probe}", 1))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=3000"]
    command = [
        "chromium",
        *flags,
        f"--window-size={width},900",
        f"--user-data-dir={tmp_path}/user",
        "--dump-dom",
        str(file),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(Page(done.stdout).text["title"][0]) == {"errors": [], "looks": 3, "wide": False}


def test_names_stay_text() -> None:
    accuracy = Accuracy(torch.tensor([[1, 1], [0, 2]]), (EVIL, "b"))
    scene = Scene(EVIL, [Panel(np.eye(3), np.eye(3), EVIL)], {EVIL: (0.0, 0.0, 1.0)})
    chart = chart_svg(Chart(EVIL, EVIL, EVIL, {EVIL: ([1, 2], [1, 2]), "b": ([1], [1])}))
    pieces = [per_class(accuracy), confusion(accuracy), live(scene), chart, element("p", EVIL), table([[EVIL], [EVIL]])]
    pieces.append(markdown(f"| a | {EVIL} |\n|---|---|\n| c | d |\n- {EVIL}"))
    for piece in pieces:
        tags = {tag for tag, _ in Page(piece).elements}
        assert not tags & {"img", "script"}
        assert "\u202e" not in piece
    assert Page(element("p", EVIL)).text["p"] == [EVIL.replace("\u202e", "?")]
    assert Page(element("p", "", title=EVIL)).elements == [("p", {"title": EVIL.replace("\u202e", "?")})]
    assert element("p", Html("<b>x</b>")) == "<p><b>x</b></p>"


def test_live_clouds_keep_places_colours_and_the_view() -> None:
    panel = Panel(np.array([[0, 0, 0], [0, 4, 0]]), np.array([[1, 0, 0], [0, 0, 1.0]]), "a\nb")
    (canvas,) = [attributes for tag, attributes in Page(live(Scene("", [panel]))).elements if tag == "canvas"]
    xyz = np.frombuffer(base64.b64decode(canvas["data-xyz"] or ""), "<i2").reshape(-1, 3)
    assert xyz.tolist() == [[0, -32767, 0], [0, 32767, 0]]
    assert [*base64.b64decode(canvas["data-rgb"] or "")] == [255, 0, 0, 0, 0, 255]
    many = Panel(np.random.RandomState(0).rand(5000, 3), np.zeros((5000, 3)))
    assert len(live(Scene("", [many]))) < 20_000
    script = (Path(command.__file__).parents[1] / "report/viewer.js").read_text()
    start = {key: float(value) for key, value in re.findall(r"(yaw|pitch): ([-\d.]+)", script)}
    assert start == {"yaw": pytest.approx(-YAW, abs=1e-3), "pitch": pytest.approx(PITCH, abs=1e-3)}


def test_charts_take_the_colours_of_the_page() -> None:
    svg = chart_svg(Chart("t", "x", "y", {"a": ([1, 2], [0.1, 10])}), log=True)
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "#0072b2" in svg


def test_comparisons_become_tables() -> None:
    page = Page(markdown("| a | b |\n|---|---:|\n| **1** | 2 |\n\n- said\n"))
    assert (page.text["th"], page.text["td"], page.text["p"]) == (["a", "b", "1"], ["2"], ["said"])


def test_a_run_whose_data_are_gone_still_has_a_page(trained: Any, tmp_path: Path) -> None:
    """The reason stands where its pictures would be."""
    run = tmp_path / "run"
    shutil.copytree(trained.folder, run)
    config = run / "config.yaml"
    config.write_text(re.sub(r"path: .*toy\.h5", f"path: {tmp_path}/gone.h5", config.read_text()))
    for checkpoint in (run / "checkpoints").glob("*.pt"):
        checkpoint.write_bytes(b"")
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0}) + "\n{torn")
    (missing,) = write_report([run], tmp_path / "page.html")
    assert missing.startswith(f"{run}: ")
    notes = [a for tag, a in Page((tmp_path / "page.html").read_text()).elements if a.get("class") == "note"]
    assert len(notes) == 1


def test_after_a_run_there_is_a_line_whatever_happens(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pc_ewa.report.page.page", lambda runs, missing: "page")
    run = tmp_path / "run"
    shutil.copytree(trained.folder, run)
    assert report_after(run) == (run / "report.html", f"report page: {run / 'report.html'}")
    assert (run / "report.html").read_text() == "page"
    assert report_after(tmp_path / "none")[1].startswith("no report page: ")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("pc_ewa.report.page.page", lambda runs, missing: __import__("matplotlib"))
    assert "matplotlib" in report_after(run)[1]


@pytest.mark.parametrize(
    ("runs", "name", "part"),
    [(["none"], "a.html", "not the folder of a run"), (["run"], "a.txt", ".html"), (["run"], "no/a.html", "folder")],
)
def test_a_report_that_cannot_be_is_refused(
    runs: list[str], name: str, part: str, trained: Any, tmp_path: Path
) -> None:
    folders = [trained.folder if run == "run" else tmp_path / run for run in runs]
    with pytest.raises(ConfigError, match=part):
        write_report(folders, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
