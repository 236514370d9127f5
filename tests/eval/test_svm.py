"""The linear SVM against scikit-learn's own, and that C never depends on test shapes; features of frozen models."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pc_ewa import load_dataset
from pc_ewa.data import Clouds
from pc_ewa.errors import ConfigError, DataError
from pc_ewa.eval import EvalSettings
from pc_ewa.eval import svm as module
from pc_ewa.eval.features import extract_features
from pc_ewa.eval.svm import CS, evaluate_linear_svm, linear_svm

NAMES = ("a", "b", "c", "d")


def blobs(count: int, seed: int, spread: float, features: int = 6) -> tuple[Tensor, Tensor]:
    """`count` shapes of each of the four classes, around centres that are the same for every seed."""
    centres = torch.randn(4, features, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4).repeat(count)
    noise = torch.randn(len(labels), features, generator=torch.Generator().manual_seed(seed))
    return 100 * (centres[labels] + spread * noise) + 7, labels


TRAIN, TEST = blobs(25, 1, 0.8), blobs(10, 2, 0.8)


def test_classes_that_are_apart_are_told_apart() -> None:
    train, test = blobs(10, 1, 0.01), blobs(5, 2, 0.01)
    result = linear_svm(*train, *test, NAMES)
    assert (result.accuracy.overall, result.samples, result.accuracy.correct) == (1, 20, 20)
    assert set(result.validation) == set(CS)
    assert result.validation[result.c] == 1


def test_accuracy_equals_that_of_scikit_learn_at_the_same_c() -> None:
    from sklearn.metrics import confusion_matrix
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    result = linear_svm(*TRAIN, *TEST, NAMES)
    assert 0.5 < result.accuracy.overall < 1
    scaler = StandardScaler().fit(TRAIN[0].double().numpy())
    svm = SVC(kernel="linear", C=result.c).fit(scaler.transform(TRAIN[0].double().numpy()), TRAIN[1].numpy())
    predicted = svm.predict(scaler.transform(TEST[0].double().numpy()))
    assert result.accuracy.confusion.tolist() == confusion_matrix(TEST[1].numpy(), predicted).tolist()
    assert result.accuracy.class_names == NAMES


def test_c_is_the_largest_of_the_best_in_cross_validation() -> None:
    from sklearn.svm import SVC

    result = linear_svm(*TRAIN, *TEST, NAMES)
    best = max(result.validation.values())
    assert result.c == max(c for c, share in result.validation.items() if share == best)
    assert len(set(result.validation.values())) > 2
    # The same again, slowly: the folds are disjoint, all of train, and each has its share of every class.
    x, _ = module._standardised(TRAIN[0], TRAIN[0])
    y = TRAIN[1].numpy()
    fold = module._folds(y, 0)
    counts = np.array([[((fold == k) & (y == label)).sum() for label in range(4)] for k in range(3)])
    assert counts.sum() == 100
    assert set(counts.flatten()) == {8, 9}
    for c, share in result.validation.items():
        parts = [SVC(kernel="linear", C=c).fit(x[fold != k], y[fold != k]) for k in range(3)]
        correct = sum((svm.predict(x[fold == k]) == y[fold == k]).sum() for k, svm in enumerate(parts))
        assert share == correct / 100


def test_c_does_not_depend_on_test_shapes() -> None:
    result = linear_svm(*TRAIN, *TEST, NAMES)
    generator = torch.Generator().manual_seed(3)
    permuted = TEST[1][torch.randperm(40, generator=generator)]
    corrupted = torch.randn(TEST[0].shape, generator=generator) * 1e4
    for test in [(TEST[0], permuted), (corrupted, TEST[1]), (TEST[0][:1], TEST[1][:1])]:
        other = linear_svm(*TRAIN, *test, NAMES)
        assert (other.c, other.validation) == (result.c, result.validation)
        assert other.accuracy.confusion.tolist() != result.accuracy.confusion.tolist()


def test_it_is_the_same_every_time_and_leaves_its_input_alone() -> None:
    copies = TRAIN[0].clone(), TEST[0].clone()
    first = linear_svm(*TRAIN, *TEST, NAMES)
    np.random.seed(5)  # the global generator must not matter
    again = linear_svm(*TRAIN, *TEST, NAMES)
    assert first.to_json() == again.to_json()
    assert torch.equal(TRAIN[0], copies[0])
    assert torch.equal(TEST[0], copies[1])


def test_constant_features_change_nothing() -> None:
    """Also one that wobbles by rounding, and whatever they are on test shapes."""
    result = linear_svm(*TRAIN, *TEST, NAMES)
    wobble = torch.full((100, 1), 0.1) * (1 + 1e-7 * torch.arange(100)[:, None] / 100)
    wider = torch.cat([TRAIN[0], torch.zeros(100, 1), torch.full((100, 1), 0.1), wobble], dim=1)
    padded = torch.cat([TEST[0], *([1e6 * torch.arange(40.0)[:, None]] * 3)], dim=1)
    padding = linear_svm(wider, TRAIN[1], padded, TEST[1], NAMES)
    assert padding.accuracy.confusion.tolist() == result.accuracy.confusion.tolist()
    assert (padding.c, padding.feature_dim) == (result.c, 9)


@pytest.mark.parametrize("counts", [(1, 5, 5, 5), (1, 1, 2, 2), (2, 2, 2, 2), (1, 1, 1, 2), (0, 1, 1, 7)])
def test_classes_of_a_few_shapes_or_one_work_without_a_warning(counts: tuple[int, ...]) -> None:
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    centres = torch.eye(4) * 10
    features = centres[labels] + torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(0))
    present = torch.arange(4)[torch.tensor(counts) > 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = linear_svm(features, labels, centres[present], present, NAMES)
    assert result.accuracy.overall == 1
    fold = module._folds(labels.numpy(), 0)
    alone = [counts[label] == 1 for label in labels.tolist()]
    assert (fold[alone] == module._ALWAYS_TRAINS).all()
    assert (fold[~np.array(alone)] >= 0).all()
    for k in range(3):
        assert set(labels.numpy()[fold != k]) == set(labels.tolist())  # no class is held out whole


def test_one_shape_of_each_class_leaves_nothing_to_choose_by() -> None:
    result = linear_svm(torch.eye(4), torch.arange(4), torch.eye(4), torch.arange(4), NAMES)
    assert (result.accuracy.overall, result.c, result.validation) == (1, max(CS), {})
    assert "no class has two training s" in result.table()


def test_large_sets_choose_c_on_a_stratified_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHOOSE_ON", 40)
    fold = module._folds(TRAIN[1].numpy(), 0)
    chosen = [(fold[TRAIN[1].numpy() == label] >= 0).sum() for label in range(4)]
    assert chosen == [10, 10, 10, 10]
    result = linear_svm(*TRAIN, *TEST, NAMES)
    assert "cross-validation (40 of 100 samples)" in result.chosen
    # The fit itself is on all.
    whole = linear_svm(*TRAIN, *TEST, NAMES, cs=[result.c])
    assert whole.accuracy.confusion.tolist() == result.accuracy.confusion.tolist()
    assert (whole.validation, whole.chosen) == ({}, "given")


def test_the_result_says_how_it_came_about() -> None:
    result = linear_svm(*TRAIN, *TEST, NAMES)
    assert result.metrics() == {**result.accuracy.metrics(), "c": result.c, "feature_dim": 6}
    assert result.describe() == f"{result.accuracy.describe()} by a linear SVM on 6 features, C {result.c:g}"
    lines = result.table().splitlines()
    assert lines[0] == "linear SVM (one against one) on 6 standardised features"
    assert lines[1] == f"C {result.c:g}, chosen on train by 3-fold cross-validation (100 of 100 samples)"
    assert len([line for line in lines if line.endswith("in cross-validation")]) == len(CS)
    assert result.accuracy.table() in result.table()
    content = json.loads(json.dumps(result.to_json()))
    assert content["standardised"] is True
    assert content["confusion"] == result.accuracy.confusion.tolist()
    assert {entry["c"]: entry["accuracy"] for entry in content["validation"]} == result.validation


def test_what_cannot_be_fitted_is_refused() -> None:
    features, labels = TRAIN
    with pytest.raises(ConfigError, match=r"cs=\(\): "):
        linear_svm(*TRAIN, *TEST, NAMES, cs=())
    with pytest.raises(ConfigError, match=r"cs=\(0, 1\): "):
        linear_svm(*TRAIN, *TEST, NAMES, cs=(0, 1))
    with pytest.raises(DataError, match="two classes or more"):
        linear_svm(features, torch.zeros_like(labels), *TEST, NAMES)
    with pytest.raises(ValueError, match=r"train features are \(100, 6\) with labels \(99,\)"):
        linear_svm(features, labels[1:], *TEST, NAMES)
    with pytest.raises(ValueError, match="6 features to train, 5 to test"):
        linear_svm(*TRAIN, TEST[0][:, 1:], TEST[1], NAMES)
    with pytest.raises(ValueError, match="test features are not all finite"):
        linear_svm(*TRAIN, TEST[0].log(), TEST[1], NAMES)


class Moments(nn.Module):
    """Features are sums over the points; in training they would be zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen: list[Tensor] = []

    def features(self, points: Tensor) -> Tensor:
        self.seen.append(points)
        moments = torch.cat([points.sum(1), (points**2).sum(1), (points**4).sum(1)], dim=1)
        return moments * self.weight * (0 if self.training else 1)


def test_features_of_every_cloud_in_order_in_eval_mode(toy_file: Path) -> None:
    clouds = load_dataset("hdf5", "train", path=toy_file)
    whole = extract_features(Moments(), clouds, EvalSettings(48, batch_size=64))
    model = Moments().train()
    found = extract_features(model, clouds, EvalSettings(48, batch_size=5))
    assert (found.shape, found.dtype, found.device.type) == ((24, 9), torch.float32, "cpu")
    assert found.requires_grad is False
    assert model.training
    assert {shown.shape[1:] for shown in model.seen} == {(48, 3)}
    assert [len(shown) for shown in model.seen] == [5, 5, 5, 5, 4]
    torch.testing.assert_close(found, whole)
    assert (found != 0).all()
    one = extract_features(Moments(), clouds.select([7]), EvalSettings(48))
    torch.testing.assert_close(one, whole[7:8])


def test_features_are_normalised_unless_told_otherwise(toy_file: Path) -> None:
    clouds = load_dataset("hdf5", "train", path=toy_file)
    model = Moments()
    extract_features(model, clouds, EvalSettings(clouds.num_points))
    assert model.seen[0].norm(dim=2).amax(1).tolist() == pytest.approx([1] * 24)
    model = Moments()
    extract_features(model, clouds, EvalSettings(clouds.num_points, normalize=False))
    assert torch.equal(model.seen[0], clouds.batch(range(24))[0])


def test_a_model_without_features_is_named(toy_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"^Linear has no features\(points\); "):
        extract_features(nn.Linear(3, 3), load_dataset("hdf5", "test", path=toy_file), EvalSettings(48))


def test_a_model_is_measured_by_the_svm_on_its_features(toy_file: Path) -> None:
    train, test = (load_dataset("hdf5", split, path=toy_file) for split in ("train", "test"))
    result = evaluate_linear_svm(Moments(), train, test, EvalSettings(48, batch_size=7))
    same = linear_svm(
        extract_features(Moments(), train, EvalSettings(48)),
        train.labels,
        extract_features(Moments(), test, EvalSettings(48)),
        test.labels,
        train.class_names,
    )
    assert result.accuracy.confusion.tolist() == same.accuracy.confusion.tolist()
    assert (result.feature_dim, result.samples) == (9, 12)
    assert result.accuracy.overall > 0.6
    assert result.accuracy.class_names == train.class_names


def test_two_datasets_of_different_classes_are_refused(toy_file: Path) -> None:
    train = load_dataset("hdf5", "train", path=toy_file)
    other = Clouds(torch.rand(2, 64, 3), None, torch.arange(2), ("x", "y"), "y", "other")
    with pytest.raises(DataError, match=r"the classes of .* and other differ"):
        evaluate_linear_svm(Moments(), train, other, EvalSettings(48))
