"""Few-shot classification: one short training for each fold, resumable fold by fold."""

import json
from typing import Any

from pc_ewa.config import Experiment, load_experiment
from pc_ewa.data.published.modelnet_fewshot import FOLDS, NAME
from pc_ewa.errors import ConfigError
from pc_ewa.eval.fewshot import SETTINGS, FewShot, Fold
from pc_ewa.train.run import run
from pc_ewa.train.run_folder import RunFolder


def run_fewshot(
    config: str,
    overrides: list[str],
    init_from: str | None,
    settings: tuple[tuple[int, int], ...] = SETTINGS,
    folds: int = FOLDS,
) -> tuple[FewShot, str]:
    """Train and measure every fold of every setting; folds that are done are read, not trained again.

    Each fold is a run of its own in `output`/5way_10shot/fold0 and so on.

    Args:
        config: YAML file whose data is modelnet_fewshot.
        overrides: `key=value`.
        init_from: checkpoint that every fold starts from; None is from scratch.
        settings: (way, shot).
        folds: how many of the folds, from the first.

    Returns:
        The result, and the folder of all its runs.

    Raises:
        ConfigError: a config for other data, or for no classifier.
        Stopped: a signal asked to stop; the same call goes on.
    """
    base = load_experiment(config, overrides)
    if base.data.name != NAME:
        raise ConfigError(f"data.name={base.data.name}; few-shot needs {NAME}, as in configs/finetune/fewshot.yaml")
    if base.task != "classify":
        raise ConfigError(
            f"model.name={base.model.name}; few-shot needs a classifier, as in configs/finetune/fewshot.yaml"
        )
    start = f"init_from={json.dumps(init_from)}"
    done = []
    for way, shot in settings:
        for fold in range(folds):
            output = f"{base.output}/{way}way_{shot}shot/fold{fold}"
            chosen = [f"data.way={way}", f"data.shot={shot}", f"data.fold={fold}", f"output={output}"]
            experiment = load_experiment(config, [*overrides, start, *chosen])
            summary = finished(experiment) or run(experiment)
            score = f"test_{summary['main_metric']}_merged"
            done.append(Fold(way, shot, fold, summary[score], summary.get(f"{score}_best")))
    return FewShot(done), base.output


def finished(experiment: Experiment) -> dict[str, Any] | None:
    """Read the summary of a run that is done with the same settings; None if it is not done."""
    folder = RunFolder(experiment.output)
    folder.check(experiment)
    return folder.summary()
