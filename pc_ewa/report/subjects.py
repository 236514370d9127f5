"""The inputs of a view, found from a path or name: a run, checkpoint, saved model, config, dataset or files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pc_ewa.bundled import bundled_configs, bundled_models, find_config
from pc_ewa.config import Experiment, load_experiment, resolve
from pc_ewa.data import DATASETS, Clouds, MissingSplitError, load_dataset
from pc_ewa.data.formats.readers import EXTENSIONS, PREPARED
from pc_ewa.errors import ConfigError, DataError
from pc_ewa.eval import EvalSettings, Score
from pc_ewa.models.checkpoints.read import read_content
from pc_ewa.report.saved import restore_saved, saved_config, saved_folder
from pc_ewa.train.batches import augment
from pc_ewa.train.objectives import create_objective
from pc_ewa.train.restore import Restored, restore, untrained
from pc_ewa.train.run_folder import RunFolder
from pc_ewa.train.setup import put_experts
from pc_ewa.train.splits import Splits, load_splits
from pc_ewa.validation import choose
from pc_ewa.yaml_config import apply_overrides

_WEIGHTS = (".pt", ".pth", ".safetensors")
_MOST_FILES = 60


class Subjects:
    """The inputs of a view by their names in `pc_ewa.viz.view.SUBJECTS`, each loaded at its first use.

    Args:
        sources: files of shapes; or one dataset, config, run folder, checkpoint, folder of `save_pretrained`, or
            "furniture".
        overrides: changes of its config.
        split: the split of the dataset.
        config: the config of a checkpoint that does not contain one.
        with_model: if False, no model is loaded.
        experts: of a run, take the checkpoint whose experts are not merged yet.

    Attributes:
        notes: remarks on the model for the reader of the picture.

    Example:
        >>> subjects = pc_ewa.report.Subjects(["furniture"], [], "test")
        >>> subjects.model.task
        'classify'
    """

    def __init__(
        self,
        sources: Sequence[str],
        overrides: list[str],
        split: Literal["train", "val", "test"],
        config: str | None = None,
        *,
        with_model: bool = True,
        experts: bool = False,
    ) -> None:
        self._sources, self._source, self._path = sources, sources[0], Path(sources[0])
        self._overrides, self._split, self._config, self._experts = overrides, split, config, experts
        self._with_model, self._run = with_model, RunFolder(self._path)
        self.notes: list[str] = []

    @property
    def files(self) -> list[Path]:
        """The given files, and all files of shapes in the given folders."""
        found: list[Path] = []
        for path in map(Path, self._sources):
            if not path.is_dir():
                found.append(path)
                continue
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
            if not inside:
                raise DataError(f"{path} has no shapes; known are {' '.join(EXTENSIONS)}")
            found += inside
        if len(found) > _MOST_FILES:
            raise ConfigError(f"{len(found)} files; one picture shows at most {_MOST_FILES}: name fewer")
        return found

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of a run's metrics.jsonl."""
        if not self._run.is_begun:
            raise ConfigError(f"{self._path} is not the folder of a run; give one, such as runs/quickstart")
        return self._run.metrics()

    @property
    def clouds(self) -> Clouds:
        """The shapes of the split. A dataset without a test split has its training shapes instead."""
        # With a model, load the data as its training did: then the classes are in the order of its outputs.
        if self._with_model:
            return self._splits.named(self._split)
        data = self.experiment.data
        if self._split == "val":
            return load_splits(data, self.experiment.seed).named("val")
        try:
            return load_dataset(data.name, self._split, Path(data.root), **data.arguments)
        except MissingSplitError:
            if self._split == "train":
                raise
            return load_dataset(data.name, "train", Path(data.root), **data.arguments)

    @property
    def training(self) -> Clouds:
        """The shapes that the model was fitted to."""
        return self._splits.to_fit(self._split)

    @property
    def model(self) -> nn.Module:
        """The network, on the device of its experiment."""
        self._restored.place()
        return self._restored.model

    def score(self) -> Score:
        """Measure the network on the split, by the metric of its task."""
        return self._restored.evaluate(self._split)

    @property
    def settings(self) -> EvalSettings:
        """The presentation of clouds in the validation of the experiment."""
        return create_objective(self.experiment).settings

    @property
    def augmentation(self) -> Callable[[Tensor, torch.Generator], Tensor]:
        """The augmentation of training, as a function of clouds and a generator."""
        how, up_axis = self.experiment.augment, self.clouds.up_axis
        return lambda points, generator: augment(points, how, up_axis, generator)

    @cached_property
    def _restored(self) -> Restored:
        if self._run.is_begun:
            restored = restore(self._checkpoint(), None, self._overrides)
        elif self._path.suffix in _WEIGHTS:
            restored = restore(self._path, self._config, self._overrides)
        elif folder := saved_folder(self._source):
            restored = restore_saved(folder, self._config, self._overrides)
        else:
            self._check_config("run, checkpoint, model or config")
            restored = untrained(self._source, self._overrides)
            if self._experts and restored.experiment.ewa:
                put_experts(restored.model, restored.experiment)
            self.notes.append(f"{self._source} is a config: its model is not trained")
        self.notes += restored.notes
        return restored

    def _checkpoint(self) -> Path:
        merged, last = self._run.merged("last"), self._run.checkpoints.last
        return last if self._experts or not merged.is_file() else merged

    @cached_property
    def experiment(self) -> Experiment:
        """The resolved experiment."""
        if self._with_model:
            return self._restored.experiment
        if self._run.is_begun:
            return resolve(apply_overrides(self._run.config(), self._overrides))
        if self._path.suffix in _WEIGHTS:
            content = read_content(self._path).get("config")
            if self._config or not isinstance(content, dict):
                return load_experiment(self._config or "", self._overrides)
            return resolve(apply_overrides(content, self._overrides))
        folder, data = saved_folder(self._source), self._dataset()
        # A folder of shapes may have the name of a bundled model. The folder on disk then has precedence.
        if folder and (data is None or folder == self._path):
            return saved_config(folder, self._config, self._overrides)
        if data is None:
            self._check_config("dataset, run or config", DATASETS)
            return load_experiment(self._source, self._overrides)
        # A config needs a model. This one is not built, as a view of a dataset reads its data section only.
        content = {"output": "runs/show", "data": data, "model": {"name": "point_mae_classifier"}}
        return resolve(apply_overrides(content, self._overrides))

    def _check_config(self, kinds: str, others: Iterable[str] = ()) -> None:
        """Raise ConfigError for an unknown source, with the nearest known name."""
        if find_config(self._source) is None:
            known = sorted({*bundled_configs(), *bundled_models(), *others})
            choose(kinds, self._source, dict.fromkeys(known))

    def _dataset(self) -> dict[str, str] | None:
        """Return the data section for a dataset name, a prepared file or a folder. None for other sources."""
        if self._source in DATASETS:
            return {"name": self._source}
        if self._path.suffix.lower() in PREPARED:
            return {"name": "hdf5", "path": self._source}
        return {"name": "files", "path": self._source} if self._path.is_dir() else None

    @cached_property
    def _splits(self) -> Splits:
        return self._restored.splits()
