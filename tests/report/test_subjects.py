"""What `pc-ewa show` finds from a run, a checkpoint, a config, a dataset or files, and what it refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pc_ewa.cli import show as command
from pc_ewa.ewa import expert_layers
from pc_ewa.report import Subjects

Show = Callable[..., tuple[int, str]]


@pytest.fixture
def show(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Show:
    """Run the command with a small side and matplotlib, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        code = command.main([*map(str, arguments), "--side", "64", "--renderer", "matplotlib"])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return call


def test_a_run_is_merged_unless_the_view_is_of_experts(trained: Any) -> None:
    merged = Subjects([str(trained.folder)], [], "test")
    before = Subjects([str(trained.folder)], [], "test", experts=True)
    assert not expert_layers(merged.model)
    assert len(expert_layers(before.model)) == 1
    assert (len(merged.clouds), len(merged.training)) == (12, 24)
    assert merged.settings.num_points == 48
    assert len(merged.metrics) >= 2


@pytest.mark.parametrize("source", ["run", "checkpoint", "config", "h5"])
def test_a_dataset_is_found_from_whatever_knows_it(source: str, trained: Any, toy_config: Path, toy_file: Path) -> None:
    run = trained.folder
    given = {"run": run, "checkpoint": run / "checkpoints/merged_last.pt", "config": toy_config, "h5": toy_file}
    for split, count in (("test", 12), ("train", 24)):
        assert len(Subjects([str(given[source])], [], split, with_model=False).clouds) == count  # type: ignore[arg-type]


def test_a_config_gives_a_model_that_is_not_trained(toy_config: Path) -> None:
    subjects = Subjects([str(toy_config)], [], "test", experts=True)
    assert len(expert_layers(subjects.model)) == 1
    assert "not trained" in subjects.notes[0]


@pytest.mark.parametrize("view", ["patches", "attention", "experts", "mistakes", "spread", "classes", "augment"])
def test_every_view_of_a_run(view: str, show: Show, trained: Any) -> None:
    code, out = show(view, trained.folder, "-o", f"{view}.png")
    assert (code, out.splitlines()[-1]) == (0, f"written to {view}.png")
    with Image.open(f"{view}.png") as image:
        assert len({colour for _, colour in image.convert("RGB").getcolors(1 << 24)}) > 3


def test_several_pictures_and_a_sheet_of_files(show: Show, tmp_path: Path, trained: Any) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.xyz").write_text("0 0 0\n1 0 0\n0 1 0\n")
    assert show("cloud", "a.xyz", "b.xyz", "-o", "both.png")[0] == 0
    assert show("cloud", "a.xyz", "b.xyz", "-o", "a.png", "-o", "b.svg", "points=2")[0] == 0
    assert show("cloud", tmp_path, "up_axis=z", "-o", "folder.png")[0] == 0
    assert {path.name for path in tmp_path.glob("*.[ps][nv]g")} == {"both.png", "a.png", "b.svg", "folder.png"}


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "VIEW"),
        (["patchs", "RUN", "-o", "a.png"], "'patches'"),
        (["patches", "-o", "a.png"], "SOURCE"),
        (["patches", "RUN"], "display"),
        (["patches", "RUN", "-o", "a.gif"], ".png"),
        (["patches", "RUN", "-o", "no/a.png"], "not there"),
        (["patches", "RUN", "RUN", "-o", "a.png"], "as many -o"),
        (["patches", "RUN", "-o", "a.png", "-o", "b.png"], "as many -o"),
        (["patches", "RUN", "-o", "a.png", "shapes=[99]"], "0 to 11"),
        (["patches", "RUN", "-o", "a.png", "shapes=x"], "shapes"),
        (["patches", "RUN", "-o", "a.png", "data.rot=/"], "data.rot"),
        (["cloud", "a.xyz", "-o", "a.png"], "a.xyz"),
        (["cloud", "a.xyz", "-o", "a.png", "pionts=3"], "points"),
        (["cloud", ".", "-o", "a.png"], "no shapes"),
        (["spread", "nowhere", "-o", "a.png"], "not the folder of a run"),
        (["spread", "RUN", "-o", "a.html"], "chart"),
        (["reconstruction", "RUN", "-o", "a.png"], "reconstructs nothing"),
        (["tokens", "RUN", "-o", "a.png"], "no tokens"),
        (["parts", "RUN", "-o", "a.png"], "no parts"),
        (["experts", "MERGED", "-o", "a.png"], "last.pt"),
        (["patches", "nothing.pt", "-o", "a.png"], "nothing.pt"),
        (["patches", "nothing", "-o", "a.png"], "nothing"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], part: str, show: Show, tmp_path: Path, trained: Any) -> None:
    places = {"RUN": str(trained.folder), "MERGED": str(trained.folder / "checkpoints" / "merged_last.pt")}
    code, out = show(*(places.get(word, word) for word in arguments))
    assert code == 2
    assert len([line for line in out.splitlines() if line.startswith("error: ")]) == 1
    assert part in out
    assert list(tmp_path.iterdir()) == []
