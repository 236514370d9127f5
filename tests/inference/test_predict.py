"""Predictions: those of evaluation, of whatever a user has, the same every time; bad input is one line."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shape_files import CLOUDS, MESHES, POINTS, npy

import pc_ewa
from pc_ewa.data import load_dataset, shapes
from pc_ewa.errors import ConfigError, DataError, OutputError
from pc_ewa.eval import EvalSettings, evaluate_classifier
from pc_ewa.eval.batches import EvalBatch
from pc_ewa.inference import PartPrediction, Prediction, as_inputs, predict_each
from pc_ewa.inference.clouds import turn
from pc_ewa.models.base import Preprocessing

NAMES = ("sphere", "cube", "torus")
FEW = Preprocessing(num_points=16, stored_points=32, up_axis="z")


def classifier(preprocessing: Preprocessing = FEW, name: str = "point_mae_classifier") -> Any:
    torch.manual_seed(0)
    sizes = {"dim": 12, "depth": 3, "num_heads": 3, "num_groups": 4, "group_size": 4, "encoder_width": 8}
    classes = {"num_classes": 3} if "classifier" in name else {"num_categories": 3, "num_parts": 6}
    model: Any = pc_ewa.create_model(name, **sizes, **classes).eval()
    model.class_names, model.preprocessing = NAMES, preprocessing
    return model


@pytest.fixture
def cloud() -> np.ndarray:
    return np.random.RandomState(0).normal(size=(50, 3))


@pytest.mark.parametrize("num_points", [1024, 256])
def test_predictions_are_those_of_evaluation_bit_for_bit(num_points: int) -> None:
    """On furniture: presented whole, and by their farthest points."""
    clouds = load_dataset("sweethome3d", "test").select(range(40))
    model = classifier(Preprocessing(num_points, clouds.num_points, up_axis=clouds.up_axis))
    settings, seen = EvalSettings(num_points, batch_size=16), []

    def note(batch: EvalBatch) -> torch.Tensor:
        seen.append(model(batch.points))
        return torch.nn.functional.pad(seen[-1], (0, clouds.num_classes - 3))

    evaluate_classifier(model, clouds, settings, predict=note)
    found = model.predict(clouds.batch(range(40))[0], batch_size=16)
    assert torch.equal(torch.stack([prediction.logits for prediction in found]), torch.cat(seen))


def test_a_prediction_has_a_class_and_probabilities(cloud: np.ndarray) -> None:
    prediction = classifier().predict(cloud)
    assert isinstance(prediction, Prediction)
    assert prediction.probabilities.shape == (3,)
    assert float(prediction.probabilities.sum()) == pytest.approx(1)
    (first, probability), *rest = prediction.top(5)
    assert (prediction.label, prediction.probability) == (first, pytest.approx(probability))
    assert [value for _, value in rest] == sorted((value for _, value in rest), reverse=True)
    assert len(rest) == 2
    assert len(prediction.top(1)) == 1


@pytest.mark.parametrize("name", [*MESHES, *CLOUDS])
def test_every_format_is_read_and_clouds_answer_as_their_array(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "FEWEST_POINTS", len(POINTS))
    path = tmp_path / name
    path.write_bytes((MESHES | CLOUDS)[name])
    model = classifier()
    prediction = model.predict(path)
    assert prediction.name == str(path)
    if name in CLOUDS:
        assert torch.equal(prediction.logits, model.predict(POINTS).logits)
        renamed = path.rename(tmp_path / f"other{path.suffix}")
        assert torch.equal(prediction.logits, model.predict(renamed).logits)
    assert torch.equal(prediction.logits, model.predict(as_path(tmp_path, path)).logits)


def as_path(folder: Path, path: Path) -> Path:
    """The only file of a folder, whatever it is called."""
    return next(iter(folder.iterdir())) if not path.exists() else path


@pytest.mark.parametrize("count", [1, 15, 16, 31, 32, 33, 5000])
@pytest.mark.parametrize("stored", [32, None])
def test_clouds_of_any_size_are_taken(count: int, stored: int | None) -> None:
    points = np.random.RandomState(1).normal(size=(count, 3)).astype(np.float32)
    model = classifier(Preprocessing(16, stored))
    first, again = model.predict(points), model.predict(torch.from_numpy(points.astype(np.float64)))
    assert torch.equal(first.logits, again.logits)
    assert torch.isfinite(first.logits).all()


def test_a_file_with_a_few_numbers_is_not_a_cloud(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("1 2 3\n4 5 6\n" * 20)
    with pytest.raises(
        DataError, match=rf"notes\.txt has 2 distinct points, and a cloud {shapes.FEWEST_POINTS} or more"
    ):
        classifier().predict(tmp_path / "notes.txt")


def test_lists_batches_and_folders_give_lists_in_order(cloud: np.ndarray, tmp_path: Path) -> None:
    model, other = classifier(), cloud[::-1] * [1, 2, 3]
    for place, points in (("b/two.npy", other), ("b/a/one.npy", cloud)):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(npy(points))
    (tmp_path / "notes.md").write_text("not a cloud")
    folder = model.predict(str(tmp_path), batch_size=1)
    assert [prediction.name for prediction in folder] == [str(tmp_path / "b/a/one.npy"), str(tmp_path / "b/two.npy")]
    listed = model.predict([cloud, tmp_path / "b/two.npy"])
    batch = model.predict(torch.from_numpy(np.stack([cloud, other])))
    for found in (listed, batch):
        for prediction, expected in zip(found, folder, strict=True):
            assert torch.allclose(prediction.logits, expected.logits, atol=1e-6)
    assert [prediction.name for prediction in batch] == ["cloud 0", "cloud 1"]
    assert model.predict([]) == []


def test_the_mode_of_the_model_is_as_before(cloud: np.ndarray) -> None:
    model = classifier()
    expected = model.predict(cloud).logits
    model.train()
    assert torch.equal(model.predict(cloud).logits, expected)
    assert model.training
    model.precision = "bf16"
    assert 0 < (model.predict(cloud).logits - expected).abs().max() < 0.1


@pytest.mark.parametrize("up", ["x", "y", "z"])
@pytest.mark.parametrize("to", ["x", "y", "z"])
def test_turning_is_a_rotation_that_takes_one_axis_to_the_other(up: Any, to: Any) -> None:
    matrix = turn(np.eye(3), up, to).T
    assert np.linalg.det(matrix) == pytest.approx(1)
    assert np.array_equal(matrix @ np.eye(3)["xyz".index(up)], np.eye(3)["xyz".index(to)])


def test_up_turns_the_cloud(cloud: np.ndarray) -> None:
    model = classifier()
    lying = cloud[:, [0, 2, 1]] * [1, 1, -1]  # y points up
    assert torch.equal(model.predict(lying, up="y").logits, model.predict(cloud).logits)
    assert torch.equal(model.predict(cloud, up="z").logits, model.predict(cloud).logits)


def test_a_cloud_far_away_answers_as_one_near(cloud: np.ndarray) -> None:
    model, far = classifier(), 5e6 + np.round(cloud, 3)
    near = far - 5e6
    assert torch.allclose(model.predict(far).logits, model.predict(near).logits, atol=1e-4)


@pytest.mark.parametrize("name", ["point_mae_segmenter", "point_bert_segmenter"])
def test_a_segmenter_labels_every_point_with_the_part_of_the_nearest_seen(name: str) -> None:
    sizes = {"levels": (14, 12)} if "bert" in name else {}
    torch.manual_seed(0)
    model: Any = pc_ewa.create_model(
        name, dim=12, depth=3, num_heads=3, num_groups=4, group_size=4, encoder_width=8, num_parts=6, num_categories=3,
        **sizes,
    ).eval()  # fmt: skip
    model.class_names, model.preprocessing = NAMES, Preprocessing(16, 16)
    points = np.random.RandomState(2).normal(size=(16, 3)).astype(np.float32)
    crowd = np.concatenate([points, points + 1e-5])
    seen = model.predict(points, category="cube")
    assert isinstance(seen, PartPrediction)
    assert (seen.category, seen.parts.shape) == ("cube", (16,))
    assert torch.equal(seen.points, torch.from_numpy(points))
    wide = classifier(Preprocessing(16, 32), name) if "mae" in name else model
    labelled = wide.predict(crowd, category="cube")
    assert labelled.parts.shape == (32,)
    assert int(labelled.parts.max()) < 6
    with pytest.raises(ConfigError, match=r"category.*sphere, cube, torus"):
        model.predict(points)
    with pytest.raises(ConfigError, match=r"'cub'.*'cube'"):
        model.predict(points, category="cub")


@pytest.mark.parametrize(
    ("inputs", "facts"),
    [
        (np.zeros((0, 3)), ["no points"]),
        (np.zeros((4, 6)), ["(4, 6)", "(points, 3)"]),
        (np.array([[0, 0, np.nan]]), ["nan"]),
        (np.array([["a", "b", "c"]]), ["(points, 3)"]),
        (np.full((2, 3), 1e30), ["1e+30"]),
        ("nowhere.ply", ["nowhere.ply", "not a file"]),
        ([1.0, 2.0], ["float"]),
        (3, ["int"]),
        ("missing_kind.docx", ["missing_kind.docx"]),
        ("~$lock.ply", ["~$lock.ply"]),
        ("a" * 300 + ".ply", ["aaa.ply"]),
        (torch.eye(3).to_sparse(), ["sparse"]),
        (torch.empty(3, 3, device="meta"), ["meta"]),
        (np.ma.masked_greater(np.eye(3), 0), ["masked"]),
    ],
)
def test_input_that_is_not_a_cloud_is_one_line(inputs: Any, facts: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        classifier().predict(inputs)
    assert "\n" not in str(caught.value)
    for fact in facts:
        assert fact in str(caught.value)


def test_bad_files_are_named_and_left_out_where_asked(tmp_path: Path, cloud: np.ndarray) -> None:
    (tmp_path / "bad.ply").write_bytes(b"ply\n")
    (tmp_path / "good.npy").write_bytes(npy(cloud))
    (tmp_path / "worse.npy").write_bytes(npy(cloud)[:-1])
    skipped: list[str] = []
    clouds, _ = as_inputs(tmp_path)
    found = list(predict_each(classifier(), clouds, on_error=lambda cloud, error: skipped.append(cloud.name)))
    assert [prediction.name for prediction in found] == [str(tmp_path / "good.npy")]
    assert skipped == [str(tmp_path / "bad.ply"), str(tmp_path / "worse.npy")]
    with pytest.raises(DataError, match=r"bad\.ply"):
        classifier().predict(tmp_path)


def test_tensors_of_types_that_numpy_lacks_are_taken(cloud: np.ndarray) -> None:
    points = torch.from_numpy(cloud).bfloat16()
    assert torch.equal(classifier().predict(points).logits, classifier().predict(points.float()).logits)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda model: model.half(), "float16"),
        (lambda model: setattr(model, "class_names", NAMES[:2]), "2 class_names"),
        (lambda model: setattr(model, "class_names", (*NAMES, "more")), "4 class_names"),
        (lambda model: setattr(model, "preprocessing", {"num_points": 16}), "Preprocessing"),
        (lambda model: setattr(model, "preprocessing", Preprocessing(3)), "at least 4"),
    ],
)
def test_a_model_that_does_not_fit_itself_says_so(change: Any, fact: str, cloud: np.ndarray) -> None:
    model = classifier()
    change(model)
    with pytest.raises(ConfigError, match=fact):
        model.predict(cloud)


@pytest.mark.parametrize("count", [-1, 2.5])
def test_impossible_counts_are_refused(count: Any, cloud: np.ndarray) -> None:
    with pytest.raises(ConfigError, match=str(count)):
        classifier().predict(cloud).top(count)
    with pytest.raises(ConfigError, match=str(count)):
        classifier().predict(cloud, batch_size=count)


def test_models_that_cannot_predict_say_why(cloud: np.ndarray) -> None:
    untrained = pc_ewa.create_model("point_mae_classifier", depth=1)
    with pytest.raises(ConfigError, match=r"load_model"):
        untrained.predict(cloud)
    with pytest.raises(ConfigError, match=r"PointMAE .*pretrain"):
        pc_ewa.create_model("point_mae", depth=1).predict(cloud)
    with pytest.raises(ConfigError, match="category"):
        classifier().predict(cloud, category="cube")
    with pytest.raises(ConfigError, match="x, y, z"):
        classifier().predict(cloud, up="w")
    with pytest.raises(ConfigError, match="up='y'"):
        classifier(Preprocessing(16)).predict(cloud, up="y")
    with pytest.raises(ConfigError, match="batch_size=0"):
        classifier().predict(cloud, batch_size=0)


def test_output_that_is_not_finite_is_no_answer(cloud: np.ndarray) -> None:
    model = classifier()
    model.norm.weight.data[0] = torch.nan
    with pytest.raises(OutputError, match="NaN"):
        model.predict(cloud)


def test_what_a_model_knows_survives_a_copy() -> None:
    model = copy.deepcopy(classifier())
    assert (model.class_names, model.preprocessing) == (NAMES, FEW)
    assert not any("class_names" in key for key in model.state_dict())


@pytest.mark.parametrize(
    "wrong",
    [{"num_points": 0}, {"stored_points": 8}, {"sampling": "all"}, {"up_axis": "w"}, {"normalize": 1}],
)
def test_impossible_preprocessing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Preprocessing(**({"num_points": 16} | wrong))
