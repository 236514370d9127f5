"""From a checkpoint or a run to what is exported: the model, its class names, the presentation of clouds."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pc_ewa.errors import CheckpointError
from pc_ewa.eval import Score
from pc_ewa.train.objectives import create_objective
from pc_ewa.train.restore import Restored, Split, restore
from pc_ewa.train.run_folder import RunFolder


@dataclass
class Source:
    """A trained model, as it is exported and measured."""

    path: Path
    restored: Restored

    @property
    def model(self) -> nn.Module:
        """The model."""
        return self.restored.model

    @property
    def class_names(self) -> list[str]:
        """The names of its classes."""
        return self.restored.class_names

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """The way from a cloud to the points that the model was trained on."""
        settings = create_objective(self.restored.experiment).settings
        return {"num_points": settings.num_points, "sampling": settings.sampling, "normalize": settings.normalize}

    def measure(self, exported: nn.Module, split: Split) -> Score:
        """Measure an exported model on a split of the dataset that the run was trained on.

        Raises:
            DataError: the dataset is missing.
            CheckpointError: it does not fit the model.
        """
        objective = create_objective(self.restored.experiment)
        return objective.evaluate(exported, self.restored.splits(), split, torch.device("cpu"))


def load(path: str | Path, config: str | None = None, overrides: list[str] | None = None) -> Source:
    """Load a checkpoint, or the merged model of the last step of a run folder.

    Raises:
        CheckpointError: nothing there, a run that is not finished, or a file that cannot be read.
        ConfigError: a config or override that is wrong.
    """
    file = Path(path)
    if file.is_dir():
        run = RunFolder(file)
        file = run.merged("last")
        if not file.is_file():
            what = "a run that is not finished; go on with it" if run.is_begun else "not a run; name one"
            raise CheckpointError(f"{path} is {what}, or give the path of a checkpoint")
    return Source(file, restore(file, config, overrides))
