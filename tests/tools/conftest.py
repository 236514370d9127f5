"""A tiny experiment of every kind on the toy shapes, each run at most once for all the tests of the tools."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pc_ewa.config import load_experiment
from pc_ewa.train import run

# Names of models by the task that they are for.
KINDS = {
    "classify": "point_mae_classifier",
    "segment": "point_mae_segmenter",
    "pretrain": "point_mae",
    "tokenize": "dvae",
    "point_bert": "point_bert",
}


@pytest.fixture(scope="session")
def trained(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A copy of the finished run, as some tools write beside the checkpoints that they are given."""
    folder = tmp_path_factory.mktemp("copied") / "run"
    shutil.copytree(trained.folder, folder)
    return trained._replace(folder=folder)


@pytest.fixture(scope="session")
def kinds(tiny_configs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Configs by kind: tiny experiments, with a mixture wherever there are FFNs, and a probe in pre-training."""
    folder = tmp_path_factory.mktemp("kinds")
    configs = {}
    for kind, model in KINDS.items():
        content = yaml.safe_load(tiny_configs[model].read_text())
        content["train"] = {"steps": 3, "batch_size": 8}
        if kind != "tokenize":
            content["ewa"] = {"num_experts": 2}
            content["model"]["depth"] = 3  # the same for all, so that one starts from another
        if kind in ("pretrain", "point_bert"):
            content["probe"] = {"data": dict(content["data"]), "every": 2}
        configs[kind] = folder / f"{kind}.yaml"
        configs[kind].write_text(yaml.safe_dump(content))
    return configs


@pytest.fixture(scope="session")
def finished(kinds: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """The summary of a finished run of a kind; its folder, under "output", is not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    summaries: dict[str, dict[str, Any]] = {}

    def summary(kind: str) -> dict[str, Any]:
        if kind not in summaries:
            overrides = [f"output={folder}/{kind}"]
            if kind == "point_bert":
                overrides.append(f"tokenizer={summary('tokenize')['output']}/checkpoints/merged_last.pt")
            made = run(load_experiment(kinds[kind], overrides))
            assert made is not None
            summaries[kind] = made
        return summaries[kind]

    return summary
