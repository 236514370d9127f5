"""A tiny experiment of every kind on the toy shapes, each run at most once for all the tests of the tools."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pc_ewa.config import load_experiment
from pc_ewa.train import run

_TRANSFORMER = "dim: 16, depth: 3, num_heads: 2, num_groups: 4, group_size: 8, encoder_width: 8"
_TOKENIZER = (
    "num_groups: 4, group_size: 8, encoder_width: 8, encoder_dim: 16, num_tokens: 16, tokens_dim: 16, decoder_dim: 16, "
    "graph_width: 8, decoder_width: 16"
)
_POINT_BERT = f"{_TOKENIZER}, dim: 16, depth: 3, num_heads: 2, contrast_dim: 8, queue_size: 32"
MODELS = {
    "classify": f"{{name: point_mae_classifier, {_TRANSFORMER}}}",
    "segment": f"{{name: point_mae_segmenter, {_TRANSFORMER}}}",
    "pretrain": f"{{name: point_mae, {_TRANSFORMER}, decoder_depth: 1}}",
    "tokenize": f"{{name: dvae, {_TOKENIZER}}}",
    "point_bert": f"{{name: point_bert, {_POINT_BERT}}}",
}


@pytest.fixture(scope="session")
def trained(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A copy of the finished run, as some tools write beside the checkpoints that they are given."""
    folder = tmp_path_factory.mktemp("copied") / "run"
    shutil.copytree(trained.folder, folder)
    return trained._replace(folder=folder)


@pytest.fixture(scope="session")
def parts_file(toy_file: Path) -> Path:
    """The toy shapes in two parts each: what is below the middle, and what is above."""
    path = toy_file.with_name("parts.h5")
    shutil.copy(toy_file, path)
    with h5py.File(path, "a") as file:
        upper = file["data"][:, :, 1] > 0
        file["part"] = (2 * file["label"][:][:, None] + upper).astype(np.uint8)
    return path


@pytest.fixture(scope="session")
def kinds(parts_file: Path) -> dict[str, Path]:
    """Configs by kind: 3 steps in 2 epochs, with a mixture wherever there are FFNs."""
    data = f"{{name: hdf5, path: {parts_file}, num_points: 48}}"
    configs = {}
    for kind, model in MODELS.items():
        ewa = "" if kind == "tokenize" else "ewa: {num_experts: 2}\n"
        probe = f"probe: {{data: {data}, every: 2}}\n" if kind in ("pretrain", "point_bert") else ""
        configs[kind] = parts_file.with_name(f"{kind}.yaml")
        configs[kind].write_text(
            f"device: cpu\ndata: {data}\nmodel: {model}\n{ewa}{probe}"
            "train: {steps: 3, batch_size: 8}\nwandb: {mode: disabled}\n"
        )
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
