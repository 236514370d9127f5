"""Few-shot classification: mean and standard deviation over the folds of each setting."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

from pc_ewa.data.published.modelnet_fewshot import TEST_SHAPES

SETTINGS = ((5, 10), (5, 20), (10, 10), (10, 20))  # (way, shot) of the published tables


@dataclass(frozen=True)
class Fold:
    """The result of one training on one fold, on its test samples.

    Attributes:
        way: number of classes.
        shot: training samples of each class.
        fold: number of the fold.
        accuracy_last: accuracy of the last state, from 0 to 1.
        accuracy_best: accuracy of the best state of the run. None if the run chose none.

    Raises:
        ValueError: an accuracy outside of 0 to 1.

    Example:
        >>> Fold(way=5, shot=10, fold=0, accuracy_last=0.95).way
        5
    """

    way: int
    shot: int
    fold: int
    accuracy_last: float
    accuracy_best: float | None = None

    def __post_init__(self) -> None:
        """Check the accuracies."""
        for accuracy in (self.accuracy_last, self.accuracy_best):
            if accuracy is not None and not 0 <= accuracy <= 1:
                raise ValueError(f"accuracy {accuracy} of {self.way}-way {self.shot}-shot; give shares from 0 to 1")


@dataclass(frozen=True)
class MeanAndStd:
    """Mean and sample standard deviation over folds. `std` is None for a single fold."""

    mean: float
    std: float | None
    folds: int

    def __str__(self) -> str:
        """Return the mean ± the standard deviation, in percent."""
        return f"{self.mean:.2%} ± " + ("-" if self.std is None else f"{self.std:.2%}")


@dataclass(frozen=True)
class FewShot:
    """The results of few-shot folds, of one setting or several.

    Papers report mean ± standard deviation over 10 folds of the epoch that is best on the test samples. `accuracy_last`
    involves no choice on test; prefer it. The deviation is that of a sample (n - 1), over the folds present.

    Raises:
        ValueError: no folds, or one of them twice.

    Example:
        >>> FewShot([Fold(5, 10, 0, 0.90), Fold(5, 10, 1, 0.94)]).describe()
        'few-shot accuracy 5-way 10-shot 92.00% ± 2.83%'
    """

    folds: Sequence[Fold]

    def __post_init__(self) -> None:
        """Check that each fold is there once."""
        keys = [(fold.way, fold.shot, fold.fold) for fold in self.folds]
        if not keys:
            raise ValueError("few-shot results of no folds; give one or more")
        if len(set(keys)) < len(keys):
            way, shot, fold = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"fold {fold} of {way}-way {shot}-shot is there twice; give each once")

    @property
    def settings(self) -> tuple[tuple[int, int], ...]:
        """The (way, shot) settings with folds, in order."""
        return tuple(sorted({(fold.way, fold.shot) for fold in self.folds}))

    @property
    def samples(self) -> int:
        """Number of test samples that were classified, over all folds; 20 of each class."""
        return sum(fold.way * TEST_SHAPES for fold in self.folds)

    @property
    def value(self) -> float:
        """Mean over the settings present of their mean accuracy; higher is better."""
        return mean(self.last(*setting).mean for setting in self.settings)

    def last(self, way: int, shot: int) -> MeanAndStd:
        """Return mean and deviation of the last states over the folds of a setting."""
        return _mean_and_std([fold.accuracy_last for fold in self._of(way, shot)])

    def best(self, way: int, shot: int) -> MeanAndStd | None:
        """Return mean and deviation of the best states, or None unless every fold of the setting has one."""
        found = [fold.accuracy_best for fold in self._of(way, shot)]
        known = [accuracy for accuracy in found if accuracy is not None]
        return _mean_and_std(known) if len(known) == len(found) else None

    def metrics(self) -> dict[str, float]:
        """Return `accuracy`, and per setting, as 5way_10shot_std, folds, accuracy, std, accuracy_best, std_best."""
        metrics = {"accuracy": self.value}
        for way, shot in self.settings:
            name, last, best = f"{way}way_{shot}shot", self.last(way, shot), self.best(way, shot)
            metrics |= {f"{name}_folds": last.folds}
            for ending, found in (("", last), ("_best", best)):
                if found:
                    metrics[f"{name}_accuracy{ending}"] = found.mean
                if found and found.std is not None:
                    metrics[f"{name}_std{ending}"] = found.std
        return metrics

    def describe(self) -> str:
        """Describe all settings in one line."""
        parts = [f"{way}-way {shot}-shot {self.last(way, shot)}" for way, shot in self.settings]
        return "few-shot accuracy " + ", ".join(parts)

    def table(self) -> str:
        """Write the four published settings, including missing ones, and any others."""
        present = self.settings
        rows = [("setting", "folds", "last state", "best state")]
        for way, shot in sorted({*SETTINGS, *present}):
            title = f"{way}-way {shot}-shot"
            if (way, shot) in present:
                last, best = self.last(way, shot), self.best(way, shot)
                rows.append((title, str(last.folds), str(last), str(best) if best else "-"))
            else:
                rows.append((title, "missing", "", ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["few-shot accuracy, mean ± sample standard deviation over folds"]
        for title, *cells in rows:
            padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
            lines.append("   ".join([f"{title:<{widths[0]}}", *padded]).rstrip())
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return all folds and metrics in plain types."""
        missing = [f"{way}way_{shot}shot" for way, shot in SETTINGS if (way, shot) not in self.settings]
        records = [asdict(fold) for fold in self.folds]
        return {**self.metrics(), "samples": self.samples, "missing": missing, "folds": records}

    def _of(self, way: int, shot: int) -> list[Fold]:
        return [fold for fold in self.folds if (fold.way, fold.shot) == (way, shot)]


def _mean_and_std(accuracies: Sequence[float]) -> MeanAndStd:
    return MeanAndStd(mean(accuracies), stdev(accuracies) if len(accuracies) > 1 else None, len(accuracies))
