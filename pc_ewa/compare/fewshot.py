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
    """Train and measure every fold of every setting. Finished folds are read, not trained again.

    Each fold is a separate run in `output`/5way_10shot/fold0 and so on.

    Args:
        config: YAML file whose data is modelnet_fewshot.
        overrides: `key=value`.
        init_from: checkpoint that every fold starts from. None trains from scratch.
        settings: pairs (way, shot).
        folds: number of folds, counted from the first.

    Returns:
        The result, and the folder of all its runs.

    Raises:
        ConfigError: a config for other data, or for no classifier.
        Stopped: a stop signal arrived; the same call resumes.
    """
    base = load_experiment(config, overrides)
    if base.data.name != NAME:
        raise ConfigError(f"data.name={base.data.name}; few-shot needs {NAME}, as in configs/finetune/fewshot.yaml")
    if base.task != "classify":
        raise ConfigError(
            f"model.name={base.model.name}; few-shot needs a classifier, as in configs/finetune/fewshot.yaml"
        )
    # JSON is YAML: null stands for None, and a path with spaces or colons is quoted.
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
    """Read the summary of a finished run with the same settings. Returns None if it is not finished."""
    folder = RunFolder(experiment.output)
    folder.check(experiment)
    return folder.summary()
