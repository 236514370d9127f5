"""A model from whatever holds it, and the folder it is saved to."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import SMALL, small

import pc_ewa
from pc_ewa.cli.merge import main as merge
from pc_ewa.data import DATASETS
from pc_ewa.errors import CheckpointError, ConfigError, Error
from pc_ewa.eval import EvalSettings
from pc_ewa.ewa import expert_layers
from pc_ewa.inference import load
from pc_ewa.models import MODELS
from pc_ewa.models.base import Preprocessing
from pc_ewa.train import run
from pc_ewa.train.restore import restore

SIZES: dict[str, Any] = {"dim": 12, "depth": 2, "num_heads": 3, "num_groups": 4, "group_size": 4, "encoder_width": 8}

MODEL: dict[str, Any] = {"name": "point_mae_classifier", "num_classes": 3, **SIZES}


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return model.state_dict()


def check_same(model: torch.nn.Module, other: torch.nn.Module) -> None:
    assert list(weights(model)) == list(weights(other))
    for key, value in weights(model).items():
        assert torch.equal(value, weights(other)[key]), key


def made(**more: Any) -> Any:
    torch.manual_seed(0)
    model: Any = pc_ewa.create_model("point_mae_classifier", num_classes=3, **SIZES)
    model.class_names, model.preprocessing = ("a", "b", "Stühle"), Preprocessing(16, 32, up_axis="z")
    for key, value in more.items():
        setattr(model, key, value)
    return model


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


@pytest.mark.parametrize("model", [made(), made(precision="bf16", preprocessing=None), made(class_names=None)])
def test_a_saved_folder_is_the_same_model(model: Any, tmp_path: Path) -> None:
    folder = model.save_pretrained(tmp_path / "deep" / "saved", metrics={"test_accuracy": 0.5})
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    for again in (pc_ewa.from_pretrained(folder, device="cpu"), pc_ewa.load_model(str(folder), device="cpu")):
        check_same(again, model)
        for name in ("class_names", "preprocessing", "precision", "built_as"):
            assert getattr(again, name) == getattr(model, name), name
        assert not again.training
        assert again.training_record["metrics"] == {"test_accuracy": 0.5}
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(weights(model))  # the official ones


def test_the_card_says_what_a_user_asks_and_nothing_of_this_machine(trained: Any, tmp_path: Path) -> None:
    folder = pc_ewa.load_model(trained.folder).save_pretrained(tmp_path / "saved", repo="me/shapes")
    card, config = (folder / "README.md").read_text(), (folder / "config.json").read_text()
    facts = ("sphere, cube, torus", f"{trained.summary['test_accuracy_merged']:.4g}", "licence", "up_axis", "Averaging")
    for fact in (*facts, 'load_model("me/shapes")', "| num_points | 48 |", "| test_samples | 12 |"):
        assert fact in card
    for text in (card, config):
        assert str(trained.folder) not in text
        assert str(trained.experiment.data.arguments["path"]) not in text
    record = json.loads(config)["training"]
    assert record["metrics"]["test_accuracy"] == trained.summary["test_accuracy_merged"]
    assert record["config"]["ewa"]["num_experts"] == 2


def test_experts_are_refused_with_the_way_out(tmp_path: Path) -> None:
    model = made()
    pc_ewa.upcycle(model, num_experts=2)
    with pytest.raises(CheckpointError, match=r"pc_ewa\.merge_experts\(model\)"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    pc_ewa.merge_experts(model).save_pretrained(tmp_path / "saved")
    gated = pc_ewa.upcycle(made(), gate=pc_ewa.Gate())
    with pytest.raises(CheckpointError, match="gate"):
        gated.save_pretrained(tmp_path / "gated")
    with pytest.raises(CheckpointError, match="create_model"):
        type(model)(3, **SIZES).save_pretrained(tmp_path / "direct")


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "model.safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{}"), "section model"),
        (lambda folder: edit(folder, format=2), "format 2"),
        (lambda folder: edit(folder, model={"name": "point_mae_classifier", "dim": 3 << 12, "num_heads": 3}), "larger"),
        (lambda folder: diverge(folder), "NaN"),
        (lambda folder: edit(folder, class_names=["a"]), "1 class_names for 3"),
        (lambda folder: edit(folder, class_names="abc"), "class_names"),
        (lambda folder: edit(folder, precision="int4"), "int4"),
        (lambda folder: edit(folder, preprocessing={"points": 3}), "points"),
        (lambda folder: edit(folder, preprocessing={"num_points": 0}), "num_points=0"),
        (lambda folder: edit(folder, preprocessing=[1]), "preprocessing"),
        (lambda folder: edit(folder, model=MODEL | {"depth": 10**9}), "depth=1000000000"),
        (lambda folder: edit(folder, preprocessing={"num_points": 16, "stored_points": 10**12}), "stored_points"),
        (lambda folder: edit(folder, class_names=["a", "b", "a"]), "'a' twice"),
        (lambda folder: edit(folder, training="x"), "training x"),
        (lambda folder: edit(folder, training={"data": 5}), "training.data 5"),
        (lambda folder: edit(folder, training={"data": {"name": "x"}}), "training.data"),
        (lambda folder: edit(folder, model={"name": "point_mae_clasifier"}), "'point_mae_classifier'"),
        (lambda folder: edit(folder, model={"name": "point_mae_classifier", "dim": "wide"}), "dim"),
        (lambda folder: edit(folder, model={"name": "point_mae_classifier", "num_classes": 3}), "does not fit"),
    ],
)
def test_a_damaged_folder_is_one_line(change: Any, fact: str, tmp_path: Path) -> None:
    folder = made().save_pretrained(tmp_path / "saved")
    change(folder)
    with pytest.raises(CheckpointError) as caught:
        pc_ewa.from_pretrained(folder)
    assert fact in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({"metrics": {"a": {1, 2}}}, {}),
        ({"notes": "\ud800"}, {}),
        ({}, {"class_names": ("a",)}),
        ({}, {"preprocessing": {"num_points": 16}}),
        ({}, {"class_names": ("a", "a", "b")}),
        ({}, {"norm": torch.nn.LayerNorm(12).requires_grad_(False).apply(lambda norm: norm.weight.fill_(torch.nan))}),
    ],
)
def test_what_could_not_be_loaded_again_is_not_saved(options: Any, changes: Any, tmp_path: Path) -> None:
    folder = made().save_pretrained(tmp_path / "saved")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(Error):
        made(**changes).save_pretrained(folder, **options)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_save_that_is_cut_off_leaves_no_mixture_of_two_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made().save_pretrained(tmp_path / "saved")
    monkeypatch.setattr("pc_ewa.inference.folder.write_text", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        made().save_pretrained(folder)
    with pytest.raises(CheckpointError):
        pc_ewa.load_model(folder)


def test_numbers_of_numpy_and_compiled_models_are_saved(tmp_path: Path) -> None:
    metrics = {"a": np.float32(0.5), "b": torch.tensor(2), "c|d": "e|f"}
    compiled: Any = SimpleNamespace(_orig_mod=made())  # as torch.compile keeps it, which takes seconds to import
    folder = pc_ewa.inference.save_pretrained(compiled, tmp_path / "saved", metrics=metrics)
    again = pc_ewa.from_pretrained(folder, device="cpu")
    check_same(again, made())
    assert again.training_record == {"metrics": {"a": 0.5, "b": 2, "c|d": "e|f"}}


@pytest.mark.parametrize("name", ["my model", 'sa"id', "."])
def test_the_code_of_a_card_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    card = (made().save_pretrained(name) / "README.md").read_text()
    monkeypatch.chdir(tmp_path if name == "." else tmp_path / "here")
    np.save("chair.npy", np.random.default_rng(0).normal(size=(40, 3)))
    code = card.split("```python\n")[1].split("```")[0].replace("chair.ply", "chair.npy")
    known: dict[str, Any] = {}
    exec(code, known)
    assert known["prediction"].label in ("a", "b", "Stühle")


def diverge(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["norm.weight"][0] = torch.nan
    save_file(state, folder / "model.safetensors")


def edit(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | changes))


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


@pytest.mark.parametrize("name", MODELS)
def test_every_model_goes_through_a_folder(name: str, tmp_path: Path) -> None:
    model: Any = small(name)
    again: Any = pc_ewa.from_pretrained(model.save_pretrained(tmp_path / name), device="cpu")
    assert type(again) is type(model)
    assert again.built_as == model.built_as
    check_same(again, model)


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


class Hub(SimpleNamespace):
    """Stands in for huggingface_hub: one repository, in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder=folder, asked=[])

    def snapshot_download(self, repo: str, revision: str | None = None, allow_patterns: Any = None) -> str:
        self.asked.append((repo, revision, sorted(allow_patterns)))
        if repo != "me/shapes":
            raise OSError("Cannot reach https://huggingface.co:\noffline mode is enabled")
        return str(self.folder)

    def HfApi(self, token: str | None = None) -> "Hub":  # noqa: N802, its name
        return self

    def create_repo(self, repo: str, private: bool, exist_ok: bool) -> None:
        self.asked.append((repo, private))

    def upload_folder(self, repo_id: str, folder_path: Path) -> str:
        if "/" not in repo_id:
            raise ValueError("no namespace")
        self.asked.append(sorted(path.name for path in folder_path.iterdir()))
        return f"https://huggingface.co/{repo_id}/commit/1"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub(made().save_pretrained(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)  # type: ignore[arg-type]
    return stand_in


def test_a_repository_of_the_hub_is_a_name(hub: Hub) -> None:
    check_same(pc_ewa.load_model("me/shapes"), made())
    check_same(pc_ewa.from_pretrained("me/shapes", revision="v1"), made())
    files = ["README.md", "config.json", "model.safetensors"]
    assert hub.asked == [("me/shapes", None, files), ("me/shapes", "v1", files)]
    (hub.folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        pc_ewa.load_model("me/shapes")


def test_offline_is_one_line_that_names_both_places(hub: Hub) -> None:
    with pytest.raises(CheckpointError) as caught:
        pc_ewa.load_model("runs/quikstart")
    message = str(caught.value)
    assert "\n" not in message
    for fact in ("runs/quikstart", "not a file or a folder", "offline mode"):
        assert fact in message


def test_pushing_uploads_the_folder(hub: Hub) -> None:
    assert made().push_to_hub("me/other", private=True) == "https://huggingface.co/me/other/commit/1"
    assert hub.asked == [("me/other", True), ["README.md", "config.json", "model.safetensors"]]
    with pytest.raises(CheckpointError, match="'other'"):
        made().push_to_hub("other")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(Error, match=r"runs/quikstart.*huggingface_hub.*not installed"):
        pc_ewa.load_model("runs/quikstart")


def test_a_damaged_summary_does_not_matter(trained: Any, tmp_path: Path) -> None:
    run = tmp_path / "run" / "checkpoints"
    run.mkdir(parents=True)
    (run / "merged_last.pt").write_bytes((trained.folder / "checkpoints/merged_last.pt").read_bytes())
    (run.parent / "summary.json").write_text("{")
    assert pc_ewa.load_model(run.parent).training_record["metrics"] == {}
    assert load.find(run.parent) == run / "merged_last.pt"
