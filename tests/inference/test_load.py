"""A model from whatever holds it: runs, checkpoints of ours and of others, the bundled one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from saved_models import SIZES, check_same, edit, made, weights
from small_models import SMALL, small

import pc_ewa
from pc_ewa.cli.merge import main as merge
from pc_ewa.data import DATASETS
from pc_ewa.errors import CheckpointError, ConfigError, Error
from pc_ewa.eval import EvalSettings
from pc_ewa.ewa import expert_layers
from pc_ewa.inference import load
from pc_ewa.models.base import Preprocessing
from pc_ewa.train import run
from pc_ewa.train.restore import restore


@pytest.mark.parametrize(
    "place", ["", "checkpoints/merged_last.pt", "checkpoints/last.pt", "checkpoints/merged_best.pt"]
)
def test_a_run_and_its_checkpoints_are_models_that_know_their_data(trained: Any, place: str) -> None:
    model = pc_ewa.load_model(trained.folder / place)
    assert not model.training
    assert model.class_names == ("sphere", "cube", "torus")
    assert model.preprocessing == Preprocessing(48, 64, "farthest", True, "y")
    assert not expert_layers(model)
    if "best" not in place:
        check_same(model, restore(trained.folder / "checkpoints/merged_last.pt").model)
    assert model.predict(torch.rand(100, 3)).label in model.class_names


def test_it_predicts_what_evaluation_counts(trained: Any) -> None:
    restored = restore(trained.folder / "checkpoints/merged_last.pt")
    clouds = restored.splits().test
    model = pc_ewa.load_model(trained.folder)
    found = model.predict(clouds.batch(range(len(clouds)))[0])
    right = sum(p.label == clouds.class_names[label] for p, label in zip(found, clouds.labels.tolist(), strict=True))
    assert right / len(clouds) == pytest.approx(trained.summary["test_accuracy_merged"])


def test_formats_and_precisions(trained: Any, tmp_path: Path) -> None:
    assert merge([str(trained.folder / "checkpoints/last.pt"), "-o", str(tmp_path / "m.safetensors")]) == 0
    model = pc_ewa.load_model(tmp_path / "m.safetensors", precision="bf16", device="cpu")
    assert (model.precision, model.preprocessing.up_axis) == ("bf16", "y")
    assert pc_ewa.load_model(trained.folder).precision == "fp32"
    with pytest.raises(ConfigError, match="fp16"):
        pc_ewa.load_model(trained.folder, precision="fp16")  # type: ignore[arg-type]


def test_official_files_take_a_config_and_names(trained: Any, toy_config: Path, tmp_path: Path) -> None:
    path, expected = tmp_path / "official.pth", restore(trained.folder / "checkpoints/merged_last.pt").model
    torch.save({"base_model": weights(expected)}, path)
    model = pc_ewa.load_model(path, config=str(toy_config))
    check_same(model, expected)
    assert model.preprocessing == Preprocessing(48, 64, up_axis="y")
    config = tmp_path / "elsewhere.yaml"
    config.write_text(toy_config.read_text().replace("toy.h5", "not_here.h5"))
    with pytest.raises(Error, match=r"not_here\.h5"):
        pc_ewa.load_model(path, config=str(config))
    model = pc_ewa.load_model(path, config=str(config), class_names=["x", "y", "z"])
    assert model.class_names == ("x", "y", "z")
    for names in (["x", "y"], list("wxyz")):
        with pytest.raises(CheckpointError, match=r"official\.pth"):
            pc_ewa.load_model(path, config=str(config), class_names=names)
    assert model.predict(torch.rand(60, 3)).label in "xyz"
    with pytest.raises(CheckpointError, match="--config"):
        pc_ewa.load_model(path)


@pytest.mark.parametrize(("dataset", "stored"), [("modelnet40", 8192), ("scanobjectnn", 2048), ("modelnet10", 8192)])
def test_official_files_need_no_dataset_whose_classes_are_published(dataset: str, stored: int, tmp_path: Path) -> None:
    names = DATASETS[dataset].published.class_names
    sizes = ", ".join(f"{key}: {SMALL[key]}" for key in SIZES)
    config = tmp_path / "small.yaml"
    data = f"{{name: {dataset}, num_points: 32, root: {tmp_path}}}"
    config.write_text(f"data: {data}\nmodel: {{name: point_mae_classifier, {sizes}}}\n")
    for head in (len(names), 40):  # the official files of ScanObjectNN have 40 outputs
        torch.save(small("point_mae_classifier", num_classes=head).state_dict(), tmp_path / "weights.pth")
        model = pc_ewa.load_model(tmp_path / "weights.pth", str(config))
        assert model.class_names == names
        assert model.preprocessing == Preprocessing(32, stored, up_axis="y")
        assert len(model.notes) == (head > len(names))


def test_a_segmenter_labels_as_it_is_measured(tiny: Any) -> None:
    """With the parts that the data has for each class, and evaluation's own points."""
    experiment = tiny("point_mae_segmenter")
    assert run(experiment) is not None
    model = pc_ewa.load_model(experiment.output, device="cpu")
    assert model.parts_of == ((0, 1), (2, 3), (4, 5))
    restored = restore(Path(experiment.output) / "checkpoints" / "merged_last.pt")
    clouds, right = restored.splits().test, 0
    settings = EvalSettings.of(restored.experiment.data, restored.experiment.train)
    for place in range(len(clouds)):
        points, labels = clouds.batch([place])
        index = settings.present(points)[1][0]
        found = model.predict(points[0], category=clouds.class_names[labels[0]])
        right += int((found.parts == clouds.part_labels([place])[0])[index].sum())
    assert right / (len(clouds) * 48) == pytest.approx(restored.evaluate("test").metrics()["accuracy"])
    again = pc_ewa.from_pretrained(model.save_pretrained(Path(experiment.output) / "saved"), device="cpu")
    assert again.parts_of == model.parts_of
    edit(Path(experiment.output) / "saved", parts_of=[[0, 1], [2, 3], [4, 9]])
    with pytest.raises(CheckpointError, match="parts_of"):
        pc_ewa.from_pretrained(Path(experiment.output) / "saved")


def test_an_official_segmenter_knows_the_published_parts(tmp_path: Path) -> None:
    torch.save(
        {"model_state_dict": small("point_mae_segmenter", num_parts=50, num_categories=16).state_dict()},
        tmp_path / "p.pth",
    )
    config = tmp_path / "parts.yaml"
    sizes = ", ".join(f"{key}: {SMALL[key]}" for key in SIZES if key != "depth")
    config.write_text(
        f"data: {{name: shapenetpart, num_points: 32}}\nmodel: {{name: point_mae_segmenter, depth: 3, {sizes}}}\n"
    )
    parts = DATASETS["shapenetpart"].parts
    model = pc_ewa.load_model(tmp_path / "p.pth", str(config))
    assert model.class_names == tuple(parts)
    assert model.parts_of == tuple(map(tuple, parts.values()))
    found = model.predict(torch.rand(40, 3), category=[*parts][1])
    assert set(found.parts.tolist()) <= set(model.parts_of[1])


def test_checkpoints_from_before_clouds_were_noted_are_read(trained: Any, tmp_path: Path) -> None:
    content = torch.load(trained.folder / "checkpoints/merged_last.pt", weights_only=True)
    del content["clouds"]
    torch.save(content, tmp_path / "old.pt")
    assert pc_ewa.load_model(tmp_path / "old.pt").preprocessing == Preprocessing(48, 64, up_axis="y")
    content["config"]["data"]["path"] = "gone.h5"
    torch.save(content, tmp_path / "old.pt")
    model = pc_ewa.load_model(tmp_path / "old.pt")
    assert model.preprocessing == Preprocessing(48)
    assert model.predict(torch.rand(10, 3)).label in model.class_names
    for key, value in (("clouds", [3]), ("class_names", ["a"]), ("class_names", [1, 2, 3])):
        torch.save(content | {key: value}, tmp_path / "damaged.pt")
        with pytest.raises(CheckpointError, match=key):
            pc_ewa.load_model(tmp_path / "damaged.pt")


def test_places_with_nothing_are_one_line(trained: Any, tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "nowhere.pt", "furnitures", "a" * 300, "~nobody/model", "me/model.pt"):
        with pytest.raises(CheckpointError) as caught:
            pc_ewa.load_model(source)
        assert str(source) in str(caught.value)
        with pytest.raises(CheckpointError):
            pc_ewa.from_pretrained(source)
    with pytest.raises(CheckpointError, match="load_model"):
        pc_ewa.from_pretrained(trained.folder)
    folder = made().save_pretrained(tmp_path / "saved")
    with pytest.raises(ConfigError, match=r"config\.json"):
        pc_ewa.load_model(folder, config="quickstart")


def test_a_stopped_run_is_its_newest_checkpoint(trained: Any, tmp_path: Path) -> None:
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    last.parent.mkdir(parents=True)
    last.write_bytes((trained.folder / "checkpoints" / "last.pt").read_bytes())
    check_same(pc_ewa.load_model(tmp_path / "run"), pc_ewa.load_model(trained.folder))


def test_a_folder_of_scans_does_not_hide_the_bundled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "furniture").mkdir()
    assert load.find("furniture").parent.name == "models"
    made().save_pretrained("furniture")
    assert load.find("furniture") == Path("furniture")


def test_a_run_folder_with_a_typing_error_is_not_looked_up_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    monkeypatch.setattr(load, "download", lambda name: pytest.fail(f"{name} was looked up"))
    (tmp_path / "scan.ply").touch()
    with pytest.raises(CheckpointError, match=r"scan\.ply holds shapes, not a model"):
        pc_ewa.load_model("scan.ply")
    with pytest.raises(CheckpointError, match="runs/quikstart is not a file or a folder"):
        load.find("runs/quikstart")


def test_a_damaged_summary_does_not_matter(trained: Any, tmp_path: Path) -> None:
    run = tmp_path / "run" / "checkpoints"
    run.mkdir(parents=True)
    (run / "merged_last.pt").write_bytes((trained.folder / "checkpoints/merged_last.pt").read_bytes())
    (run.parent / "summary.json").write_text("{")
    assert pc_ewa.load_model(run.parent).training_record["metrics"] == {}
    assert load.find(run.parent) == run / "merged_last.pt"
