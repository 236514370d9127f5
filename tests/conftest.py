"""A toy dataset of spheres, cubes and tori, a tiny experiment on it, and the tools as functions."""

import importlib.util
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pytest
import torch

from pc_ewa.config import Experiment, load_experiment
from pc_ewa.data import write_hdf5
from pc_ewa.train import run

REPOSITORY = Path(__file__).parent.parent
CLASSES = ("sphere", "cube", "torus")

# Every model, as small as it can be; the sizes of the tokenizer are those of Point-BERT's.
_BACKBONE = "dim: 16, depth: 2, num_heads: 2, num_groups: 8, group_size: 8, encoder_width: 8"
_TOKENIZER = "encoder_dim: 8, num_tokens: 16, tokens_dim: 8, decoder_dim: 8, graph_width: 4, decoder_width: 8"
TINY = {
    "point_mae_classifier": _BACKBONE,
    "point_mae": f"{_BACKBONE}, decoder_depth: 1",
    "dvae": f"num_groups: 8, group_size: 8, encoder_width: 8, {_TOKENIZER}",
    "point_bert": f"{_BACKBONE}, {_TOKENIZER}, contrast_dim: 8, queue_size: 16",
    "point_mae_segmenter": _BACKBONE.replace("depth: 2", "depth: 3"),
    "point_bert_segmenter": _BACKBONE.replace("depth: 2", "depth: 3") + ", encoder_dim: 8, levels: [24, 16]",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="torch finds no CUDA device"))


class ToolResult(NamedTuple):
    """What a tool left: exit code, and what it printed."""

    code: int
    out: str
    err: str


class Trained(NamedTuple):
    """A finished run."""

    folder: Path
    experiment: Experiment
    summary: dict[str, object]


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def toy_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 shapes of 64 points in our layout: 24 to train, 12 to test, a third of them of each class."""
    random = np.random.RandomState(0)
    points = np.stack([_primitive(i % 3, 64, random) for i in range(36)])
    path = tmp_path_factory.mktemp("toy") / "toy.h5"
    names = [f"{CLASSES[i % 3]} {i}" for i in range(36)]
    write_hdf5(path, points, [i % 3 for i in range(36)], CLASSES, up_axis="y", split=[0] * 24 + [1] * 12, names=names)
    return path


@pytest.fixture(scope="session")
def toy_config(toy_file: Path) -> Path:
    """An experiment of 4 steps in 2 epochs: 21 shapes train in batches of 8, 3 validate, saved every step."""
    path = toy_file.with_name("toy.yaml")
    path.write_text(
        f"""
device: cpu
data: {{name: hdf5, path: {toy_file}, num_points: 48}}
model:
  {{name: point_mae_classifier, dim: 16, depth: 2, num_heads: 2, num_groups: 4, group_size: 8, encoder_width: 8}}
ewa: {{num_experts: 2}}
train: {{steps: 4, batch_size: 8, save_every: 1}}
wandb: {{mode: disabled}}
"""
    )
    return path


@pytest.fixture(scope="session")
def toy_parts_file(toy_file: Path) -> Path:
    """The toy dataset, with the lower and the upper half of the shapes of each class as its two parts: 0 to 5."""
    path = toy_file.with_name("toy_parts.h5")
    shutil.copy(toy_file, path)
    with h5py.File(path, "a") as file:
        upper = file["data"][..., 1] > 0
        file["part"] = (2 * file["label"][:][:, None] + upper).astype(np.uint8)
    return path


@pytest.fixture(scope="session")
def tiny_configs(toy_parts_file: Path) -> dict[str, Path]:
    """Experiments of 4 steps in 2 epochs without EWA, one for each model in TINY, by its name."""
    paths = {}
    for name, sizes in TINY.items():
        sampling = "farthest" if "segmenter" in name else "random"
        paths[name] = toy_parts_file.with_name(f"{name}.yaml")
        paths[name].write_text(
            f"""
device: cpu
data: {{name: hdf5, path: {toy_parts_file}, num_points: 48, sampling: {sampling}}}
model: {{name: {name}, {sizes}}}
train: {{steps: 4, batch_size: 8, save_every: 1}}
wandb: {{mode: disabled}}
"""
        )
    return paths


@pytest.fixture
def tiny(tiny_configs: dict[str, Path], tmp_path: Path) -> Callable[..., Experiment]:
    """Make a tiny experiment by the name of its model, with overrides; it writes to `tmp_path / "run"`."""
    return lambda name, *overrides: load_experiment(tiny_configs[name], [f"output={tmp_path}/run", *overrides])


@pytest.fixture(scope="session")
def tokenizer(tiny_configs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The merged file of a tiny dVAE, trained to its end; not to be changed."""
    folder = tmp_path_factory.mktemp("tokenizer") / "run"
    run(load_experiment(tiny_configs["dvae"], [f"output={folder}"]))
    return folder / "checkpoints" / "merged_last.pt"


@pytest.fixture
def experiment(toy_config: Path, tmp_path: Path) -> Callable[..., Experiment]:
    """Make the toy experiment with overrides; it writes to `tmp_path / "run"`."""
    return lambda *overrides: load_experiment(toy_config, [f"output={tmp_path}/run", *overrides])


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Sums in the same order as in processes that were given one thread; and quicker on models this small."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def trained(toy_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The toy experiment, run to its end; not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    experiment = load_experiment(toy_config, [f"output={folder}"])
    summary = run(experiment)
    assert summary is not None
    return Trained(folder, experiment, summary)


@pytest.fixture
def tool(capfd: pytest.CaptureFixture[str]) -> Callable[..., ToolResult]:
    """Call the main function of a script in tools/ by its name, as its command line would."""

    def call(name: str, *arguments: object) -> ToolResult:
        spec = importlib.util.spec_from_file_location(f"tools_{name}", REPOSITORY / "tools" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        capfd.readouterr()
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(message, file=sys.stderr)  # as it is without pytest
            try:
                code = module.main([str(argument) for argument in arguments])
            except SystemExit as stop:  # argparse: --help, or a wrong option
                code = stop.code
        return ToolResult(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def one_thread_environment() -> dict[str, str]:
    """Environment for a process of its own."""
    return os.environ | {"OMP_NUM_THREADS": "1"}


def _primitive(kind: int, count: int, random: np.random.RandomState) -> np.ndarray:
    points = random.normal(size=(count, 3))
    if CLASSES[kind] == "sphere":
        return points / np.linalg.norm(points, axis=1, keepdims=True)
    if CLASSES[kind] == "cube":
        return points / np.abs(points).max(1, keepdims=True)
    around, across = random.uniform(0, 2 * np.pi, (2, count))
    ring = 1 + 0.3 * np.cos(across)
    return np.stack([ring * np.cos(around), 0.3 * np.sin(across), ring * np.sin(around)], 1)
