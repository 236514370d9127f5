"""What `pc-ewa show` finds from a run, a checkpoint, a config, a dataset or files, and what it refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pc_ewa.cli import show as command
from pc_ewa.ewa import expert_layers
from pc_ewa.inference import load_model
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


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {}}', '{"model": {}, "training": 3}'])
def test_a_saved_model_that_is_damaged_is_one_line(content: str, show: Show, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(content)
    for view in ("patches", "classes"):
        code, out = show(view, "model", "-o", "a.png")
        assert (code, len(out.splitlines())) == (2, 1)
        assert "config.json" in out or "model.safetensors" in out


@pytest.mark.parametrize("source", ["run", "checkpoint", "config", "h5"])
def test_a_dataset_is_found_from_whatever_knows_it(source: str, trained: Any, toy_config: Path, toy_file: Path) -> None:
    run = trained.folder
    given = {"run": run, "checkpoint": run / "checkpoints/merged_last.pt", "config": toy_config, "h5": toy_file}
    for split, count in (("test", 12), ("train", 24)):
        assert len(Subjects([str(given[source])], [], split, with_model=False).clouds) == count  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def saved(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as a folder of `save_pretrained`: it does not say where its data lay."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    load_model(trained.folder, device="cpu").save_pretrained(folder)
    return folder


def test_a_saved_model_is_shown_on_its_data(saved: Path, trained: Any, toy_file: Path, show: Show) -> None:
    subjects = Subjects([str(saved)], [f"data.path={toy_file}"], "test")
    of_run = Subjects([str(trained.folder)], [], "test")
    weights = of_run.model.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in subjects.model.state_dict().items())
    assert subjects.settings == of_run.settings
    assert (len(subjects.clouds), len(subjects.training)) == (12, 24)
    data = Subjects([str(saved)], [f"data.path={toy_file}"], "train", with_model=False)
    assert len(data.clouds) == 24
    for view in ("patches", "classes"):
        assert show(view, saved, f"data.path={toy_file}", "-o", f"{view}.png")[0] == 0


def test_the_bundled_model_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    subjects = Subjects(["furniture"], [], "test")
    assert subjects.model.class_names[0] == "appliance"
    assert (len(subjects.clouds), subjects.notes) == (154, [])
    assert subjects.settings.num_points == 1024
    assert len(Subjects(["furniture"], [], "train", with_model=False).clouds) == 459
    config = Subjects(["furniture.yaml"], [], "test", experts=True)  # the config is still there, by its file name
    assert len(expert_layers(config.model)) == 2
    assert "not trained" in config.notes[0]


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
    assert show("cloud", tmp_path, "up=y", "-o", "folder.png")[0] == 0
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
        (["tokens", "RUN", "-o", "a.png"], "not predict tokens"),
        (["parts", "RUN", "-o", "a.png"], "not predict parts"),
        (["experts", "MERGED", "-o", "a.png"], "last.pt"),
        (["experts", "furniture", "-o", "a.png"], "last.pt"),
        (["spread", "furniture", "-o", "a.png"], "not the folder of a run"),
        (["reconstruction", "furniture", "-o", "a.png"], "reconstructs nothing"),
        (["patches", "furniture", "-o", "a.png", "shapes=[154]"], "0 to 153"),
        (["patches", "SAVED", "-o", "a.png"], "data.path"),
        (["classes", "SAVED", "-o", "a.png"], "data.path"),
        (["classes", "SAVED", "-o", "a.png", "data.path=none.h5"], "none.h5"),
        (["patches", "furnitur", "-o", "a.png"], "furniture"),
        (["patches", "nothing.pt", "-o", "a.png"], "nothing.pt"),
        (["patches", "nothing", "-o", "a.png"], "nothing"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], part: str, show: Show, tmp_path: Path, trained: Any, saved: Path
) -> None:
    merged = trained.folder / "checkpoints" / "merged_last.pt"
    places = {"RUN": str(trained.folder), "MERGED": str(merged), "SAVED": str(saved)}
    code, out = show(*(places.get(word, word) for word in arguments))
    assert code == 2
    assert len([line for line in out.splitlines() if line.startswith("error: ")]) == 1
    assert part in out
    assert list(tmp_path.iterdir()) == []
