"""A linear SVM on frozen features, the standard protocol for models trained without labels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pc_ewa.data import Clouds
from pc_ewa.errors import ConfigError, DataError
from pc_ewa.eval.accuracy import Accuracy
from pc_ewa.eval.features import extract_features
from pc_ewa.eval.settings import EvalSettings

CS = (0.001, 0.003, 0.01, 0.03, 0.1, 1.0, 10.0)
FOLDS = 3
CHOOSE_ON = 3000  # most training samples for the choice of C: all of ModelNet40 then takes less than a minute

_LEFT_OUT, _ALWAYS_TRAINS = -2, -1  # instead of a fold


@dataclass(frozen=True)
class LinearSVMResult:
    """The result of a linear SVM, and its settings.

    Attributes:
        accuracy: accuracy on the test samples.
        c: the regularisation C; lower is smoother.
        feature_dim: number of features, including constant ones.
        validation: accuracy in cross-validation on the training samples, by C. Empty if C was given.
        chosen: a description of the choice of C.
        feature: a description of the features.
    """

    accuracy: Accuracy
    c: float
    feature_dim: int
    validation: dict[float, float]
    chosen: str
    feature: str = ""
    standardised: ClassVar[bool] = True

    @property
    def samples(self) -> int:
        """Number of test samples."""
        return self.accuracy.samples

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the accuracy, c and feature_dim by name."""
        return {**self.accuracy.metrics(), "c": self.c, "feature_dim": self.feature_dim}

    def describe(self) -> str:
        """Describe the accuracy in one line."""
        return f"{self.accuracy.describe()} by a linear SVM on {self.feature_dim} features, C {self.c:g}"

    def table(self) -> str:
        """Write the settings of the SVM, and the table of its accuracy."""
        lines = [
            f"linear SVM (one against one) on {self.feature_dim} standardised features" + self._named(),
            f"C {self.c:g}, {self.chosen}",
            *(f"  C {c:<6g} {share:7.2%} in cross-validation" for c, share in self.validation.items()),
        ]
        return "\n".join([*lines, self.accuracy.table()])

    def _named(self) -> str:
        return f": {self.feature}" if self.feature else ""

    def to_json(self) -> dict[str, Any]:
        """Return all fields and metrics in plain types."""
        validation = [{"c": c, "accuracy": share} for c, share in self.validation.items()]
        own = {"c": self.c, "chosen": self.chosen, "validation": validation}
        own |= {"feature": self.feature, "feature_dim": self.feature_dim}
        return {**self.accuracy.to_json(), **own, "standardised": self.standardised}


def linear_svm(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    class_names: tuple[str, ...],
    *,
    cs: Sequence[float] = CS,
    seed: int = 0,
) -> LinearSVMResult:
    """Fit a linear SVM on training features and measure it on test features.

    Features are standardised by mean and deviation of the training samples. Features that are constant there, up to the
    precision of float32, become 0. C is chosen on training samples alone, by stratified 3-fold cross-validation. Of
    equal values the largest is chosen, because a small C on few samples predicts the most frequent class. A class with
    one sample is never held out. Large sets choose C on a stratified subset of 3,000 samples. The SVM is then fitted to
    all training samples.

    The SVM is scikit-learn's `SVC(kernel="linear")`, one against one, as in Point-M2AE. Point-BERT and ReCon use
    `LinearSVC`, one against all, which takes several times as long. These papers fix C (0.012; 1; 0.075), and their
    features differ, so that their numbers do not compare.

    Args:
        train_features: (N, F).
        train_labels: (N,) positions in `class_names`.
        test_features: (M, F).
        test_labels: (M,).
        class_names: name of every class.
        cs: candidate values of C. A single one is used without a choice.
        seed: seed of the cross-validation folds, 0 to 2**32 - 1.

    Raises:
        ConfigError: `cs` is empty, or a value is not positive.
        DataError: training samples of one class only.
        ValueError: features that are not finite, or do not fit their labels or each other.
    """
    if not cs or min(cs) <= 0:
        raise ConfigError(f"cs={tuple(cs)}: values of C to choose from are positive, and at least one")
    _check(train_features, train_labels, test_features, test_labels)
    if len(set(train_labels.tolist())) < 2:
        raise DataError("a linear SVM needs training samples of two classes or more; use more of the dataset")
    x, x_test = _standardised(train_features, test_features)
    y, y_test = (labels.cpu().numpy() for labels in (train_labels, test_labels))
    c, validation, chosen = _choose(x, y, sorted(set(cs)), seed)
    predicted = _svm(c, "linear").fit(x, y).predict(x_test)
    classes = len(class_names)
    confusion = np.bincount(y_test * classes + predicted, minlength=classes**2).reshape(classes, classes)
    accuracy = Accuracy(torch.from_numpy(confusion), tuple(class_names))
    return LinearSVMResult(accuracy, c, train_features.shape[1], validation, chosen)


def evaluate_linear_svm(
    model: nn.Module,
    train: Clouds,
    test: Clouds,
    settings: EvalSettings,
    *,
    device: torch.device | None = None,
    cs: Sequence[float] = CS,
    seed: int = 0,
) -> LinearSVMResult:
    """Fit a linear SVM on the features of a frozen model: `extract_features`, then `linear_svm`.

    Processes do not share the work, so that one of them may call this alone.

    Raises:
        ConfigError: a model without features.
        DataError: datasets with different classes, or training samples of one class only.
    """
    if train.class_names != test.class_names:
        raise DataError(f"the classes of {train.name} and {test.name} differ; take both splits from one dataset")
    features, test_features = (
        extract_features(model, clouds, settings, device=device, title=f"features of {split}")
        for split, clouds in (("train", train), ("test", test))
    )
    result = linear_svm(features, train.labels, test_features, test.labels, train.class_names, cs=cs, seed=seed)
    return replace(result, feature=getattr(model, "feature_name", ""))


def _check(train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor) -> None:
    for name, features, labels in (("train", train_features, train_labels), ("test", test_features, test_labels)):
        if features.dim() != 2 or tuple(labels.shape) != (len(features),) or not len(features):
            shapes = f"{tuple(features.shape)} with labels {tuple(labels.shape)}"
            raise ValueError(f"{name} features are {shapes}; expected (N, F) and (N,), at least one")
        if not features.isfinite().all():
            raise ValueError(f"{name} features are not all finite; look at the model that made them")
    if train_features.shape[1] != test_features.shape[1]:
        raise ValueError(
            f"{train_features.shape[1]} features to train, {test_features.shape[1]} to test; they must agree"
        )


def _standardised(train: Tensor, test: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    train, test = train.cpu().double(), test.cpu().double()
    mean, deviation = train.mean(0), train.std(0, correction=0)
    # A constant feature has a deviation of rounding errors only; dividing by it would turn them into a feature of
    # deviation 1.
    constant = deviation <= 1e-6 * train.abs().amax(0)
    scale = torch.where(constant, 0.0, 1 / deviation)
    return ((train - mean) * scale).numpy(), ((test - mean) * scale).numpy()


def _choose(
    x: NDArray[np.float64], y: NDArray[np.int64], cs: Sequence[float], seed: int
) -> tuple[float, dict[float, float], str]:
    """Choose C from ascending values. Returns C, the cross-validation accuracies, and a description of the choice."""
    if len(cs) == 1:
        return cs[0], {}, "given"
    fold, samples = _folds(y, seed), len(y)
    kept = np.flatnonzero(fold != _LEFT_OUT)
    x, y, fold = x[kept], y[kept], fold[kept]
    held_out = int((fold >= 0).sum())
    if not held_out:
        return cs[-1], {}, "the largest of the values: no class has two training samples to choose it on"
    # The kernel of the linear SVM does not depend on C or fold: computed once, it saves most of the time.
    products = x @ x.T
    validation = {}
    for c in cs:
        correct = 0
        for k in np.unique(fold[fold >= 0]):
            fitted, held = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
            svm = _svm(c, "precomputed").fit(products[np.ix_(fitted, fitted)], y[fitted])
            correct += int((svm.predict(products[np.ix_(held, fitted)]) == y[held]).sum())
        validation[c] = correct / held_out
    chosen = f"chosen on train by {FOLDS}-fold cross-validation ({held_out} of {samples} samples)"
    return max(validation, key=lambda c: (validation[c], c)), validation, chosen


def _folds(y: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Assign the samples of each class to the folds in turn, so that every class is in every training split."""
    # RandomState, not default_rng: its stream is frozen for all numpy versions.
    order = np.random.RandomState(seed).permutation(len(y))
    share = min(1.0, CHOOSE_ON / len(y))
    fold = np.full(len(y), _LEFT_OUT)
    dealt = 0
    for label in np.unique(y):
        members = order[y[order] == label]
        members = members[: max(2, round(share * len(members)))]
        fold[members] = (dealt + np.arange(len(members))) % FOLDS if len(members) > 1 else _ALWAYS_TRAINS
        dealt += len(members) if len(members) > 1 else 0
    return fold


def _svm(c: float, kernel: str) -> Any:
    from sklearn.svm import SVC

    return SVC(kernel=kernel, C=c, cache_size=500)
