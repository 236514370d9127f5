"""docs/pictures.py: the pictures of README and docs are fresh, small, linked, and there."""

import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from pc_ewa.cli import report, show
from pc_ewa.errors import ConfigError
from pc_ewa.viz import VIEWS

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_pictures", REPOSITORY / "docs" / "pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copy(pictures: ModuleType, tmp_path: Path) -> Path:
    """README, docs and the code that draws, to be changed."""
    shutil.copy(REPOSITORY / "README.md", tmp_path)
    shutil.copytree(REPOSITORY / "docs", tmp_path / "docs")
    for source in {source for picture in pictures.PICTURES.values() for source in picture.sources}:
        (tmp_path / source).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / source, tmp_path / source)
    return tmp_path


def problems(pictures: ModuleType, root: Path) -> list[str]:
    return [*pictures.stale(root), *pictures.badly_linked(root)]


def test_the_pictures_are_fresh(pictures: ModuleType) -> None:
    assert problems(pictures, REPOSITORY) == []


def test_only_code_that_acts_makes_pictures_stale(pictures: ModuleType, copy: Path) -> None:
    """Comments and docstrings do not; a change names the pictures of that view and how to make them again."""
    view = copy / "pc_ewa/viz/views/patches.py"
    text = view.read_text()
    view.write_text(re.sub(r'^""".*?"""', '"""Other words."""', text, count=1, flags=re.DOTALL) + "\n\n# a comment\n")
    assert problems(pictures, copy) == []
    view.write_text(text.replace("_CENTER_SIZE = 1.8", "_CENTER_SIZE = 2.8"))
    (problem,) = problems(pictures, copy)
    assert problem.startswith("docs/pictures/patches.png")
    assert problem.endswith("python docs/pictures.py patches")


def test_links_and_pictures_belong_together(pictures: ModuleType, copy: Path) -> None:
    (copy / "docs/pictures/patches.png").rename(copy / "docs/pictures/other.png")
    with (copy / "docs/own-data.md").open("a") as page:
        page.write('![x](none.png) <img width="9" src="nowhere.png"> ![y](https://example.org/a.png)\n')
    found = problems(pictures, copy)
    for words in (
        "patches.png is not there",
        "README.md links",
        "index.md links",
        "links none.png",
        "nowhere.png",
        "other.png is linked",
    ):
        assert sum(words in line for line in found) == 1, words
    assert len(found) == 6


def test_a_picture_made_by_another_command_is_stale(pictures: ModuleType, copy: Path) -> None:
    path = copy / "docs/pictures/experts.png"
    pictures.save_small(path, path, {"command": "another", "digest": "none"})
    (problem,) = problems(pictures, copy)
    assert "experts.png was made by another command" in problem


def test_the_commands_are_ours(pictures: ModuleType) -> None:
    for name, picture in pictures.PICTURES.items():
        program, command, *arguments = picture.command.split()
        if program == "pc-ewa":
            parser = {"show": show, "report": report}[command].create_parser()
            options = parser.parse_intermixed_args(arguments)
            assert command == "report" or options.view == name in VIEWS
        with Image.open(REPOSITORY / pictures.FOLDER / f"{name}.png") as image:
            assert image.mode == "P"
            assert picture.window in (None, image.size)


def test_the_page_of_views_has_every_view() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| .* \| `pc-ewa show (\w+) (.*)` \|$", (REPOSITORY / "docs/pictures.md").read_text(), re.M
    )
    assert [name for name, _, _ in rows] == [*VIEWS]
    for name, view, arguments in rows:
        assert name == view
        options = show.create_parser().parse_intermixed_args([view, *arguments.split()])
        show.sort_arguments(options.sources, VIEWS[view])


def test_one_picture_is_made(pictures: ModuleType, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its command within, in 256 colours, after the run that it shows."""
    calls = []

    def call(command: str, folder: Path) -> None:
        calls.append(command)
        Image.radial_gradient("L").save(folder / "reconstruction.png")

    monkeypatch.setattr(pictures, "_call", call)
    pictures.make("reconstruction", copy / "runs", copy)
    assert [command.split()[1] for command in calls] == ["train", "show"]
    assert problems(pictures, copy) == []
    with Image.open(copy / "docs/pictures/reconstruction.png") as image:
        assert (image.size, image.mode) == ((256, 256), "P")
        assert image.text["command"] == calls[1]  # type: ignore[attr-defined]
    monkeypatch.setattr(pictures, "MOST_BYTES", 100)
    with pytest.raises(ConfigError, match="bytes"):
        pictures.make("reconstruction", copy / "runs", copy)
    assert pictures.main(["nothing"]) == 2
