"""A clone of the repository in which every command takes a moment: small configs and datasets under their own names."""

import re
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from checkpoint_files import save_base_model
from pages import REPOSITORY
from shape_files import MESHES
from small_models import SMALL

from pc_ewa import cli
from pc_ewa.bundled import bundled_configs, find_config
from pc_ewa.config.resolve import DECIDED_BY_DATA
from pc_ewa.data.convert import convert
from pc_ewa.data.published import modelnet_common, scanobjectnn, shapenet55, shapenetpart
from pc_ewa.data.source import Item, Sample, Source
from pc_ewa.inference import load_model
from pc_ewa.models import MODELS
from pc_ewa.validation import arguments_of
from pc_ewa.yaml_config import read_yaml

_MODELNET40 = modelnet_common.CLASSES["40"]
# Prepared files, by the classes in them.
_DATASETS: dict[str, tuple[str, ...]] = {
    "mine.h5": ("bench", "stool"),
    "datasets/modelnet40/modelnet40.h5": _MODELNET40,
    "datasets/modelnet_fewshot/modelnet_fewshot_5way_10shot_0.h5": _MODELNET40[:5],
    **{f"datasets/scanobjectnn/scanobjectnn_{name}.h5": scanobjectnn.CLASS_NAMES for name in scanobjectnn.VARIANTS},
    "datasets/shapenet55/shapenet55.h5": tuple(shapenet55.SYNSETS.values()),
    "datasets/shapenetpart/shapenetpart.h5": tuple(shapenetpart.CATEGORIES),
}
_CLOUDS = ("chair.ply", "sofa.off", "new_scan.ply", "new_scans/1.ply", "scans/1.ply")
# Runs and weights that pages take for given, and the training that they come from.
_GIVEN = {
    "runs/quickstart": ["quickstart"],
    "runs/quickstart_dense": ["quickstart", "ewa=null"],
    "runs/dense": ["quickstart", "ewa=null"],
    "runs/quickstart_pretrain": ["quickstart_pretrain"],
    "runs/quickstart_dvae": ["quickstart_dvae"],
    "runs/quickstart_point_bert": ["quickstart_point_bert"],
    "runs/pre_dense": ["pretrain/point_mae_modelnet40_small", "ewa=null"],
    "runs/own_data": ["own_data"],
    "runs/own_dense": ["own_data", "ewa=null"],
    "runs/modelnet40": ["finetune/modelnet40"],
    "runs/shapenetpart": ["finetune/shapenetpart"],
    "merged_last.pt": ["quickstart"],
    "pretrained.pt": ["quickstart_pretrain"],
    "pretrained.pth": ["pretrain/point_mae_shapenet55"],
    "pretrain.pth": ["pretrain/point_mae_shapenet55"],
    "dVAE.pth": ["pretrain/dvae_shapenet55"],
    "Point-BERT.pth": ["pretrain/point_bert_shapenet55", "tokenizer=dVAE.pth"],
    "modelnet_1k.pth": ["finetune/modelnet40"],
    "FILE.pth": ["finetune/modelnet40", "model.name=point_bert_classifier"],
}


def _ply(name: str) -> bytes:
    """A cloud of 20 points, another one for each name."""
    points = np.random.RandomState([*name.encode()]).rand(20, 3)
    header = "ply\nformat ascii 1.0\nelement vertex 20\n" + "".join(f"property float {axis}\n" for axis in "xyz")
    rows = "".join(f"{x} {y} {z}\n" for x, y, z in points)
    return f"{header}end_header\n{rows}".encode()


def make(clone: Path) -> None:
    """Write configs, datasets and shapes to an empty folder. The model is the bundled one."""
    for name, path in bundled_configs().items():
        config = clone / "configs" / f"{name}.yaml"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(yaml.safe_dump(_shrunken(read_yaml(path))))
    (clone / "models").symlink_to(REPOSITORY / "models")
    (clone / "pyproject.toml").touch()
    furniture = load_model("furniture").class_names
    assert furniture is not None
    for file, classes in {**_DATASETS, "datasets/sweethome3d/sweethome3d_1024.h5": furniture}.items():
        (clone / file).parent.mkdir(parents=True, exist_ok=True)
        convert(_shapes(classes, file), clone / file)
    for file in (*_CLOUDS, *(f"my_shapes/{name}/{i}.ply" for name in ("a", "b") for i in range(5))):
        (clone / file).parent.mkdir(parents=True, exist_ok=True)
        (clone / file).write_bytes(MESHES["plain.off"] if file.endswith(".off") else _ply(file))
    (clone / "examples").mkdir()
    shutil.copy(REPOSITORY / "examples" / "chair.xyz", clone / "examples")


def _shrunken(content: dict[str, Any]) -> dict[str, Any]:
    """Make an experiment one of an epoch with a small model, a comparison one of such experiments and one seed."""
    if "model" not in content:
        large = ("data.", "model.", "train.epochs")
        changes = [change for change in content["changes"] if not change.startswith(large)]
        return content | {"seeds": [0], "sweep": None, "changes": changes}
    sizes = arguments_of(MODELS[content["model"]["name"]], SMALL | {"queue_size": 32})  # that of the batch, or more
    content["model"] |= {key: size for key, size in sizes.items() if key not in DECIDED_BY_DATA}
    content["data"]["num_points"] = 32
    if "probe" in content:  # 18 classes, where ModelNet40 has 40
        content["probe"]["data"] = {"name": "sweethome3d", "num_points": 32}
    content["train"] = content.get("train", {}) | {"epochs": 1, "batch_size": 32}
    return content | {"device": "cpu", "wandb": {"mode": "disabled"}}


def _shapes(classes: Sequence[str], file: str) -> Source:
    """Make random clouds of each class for one of the files of `_DATASETS`."""
    counts = {"train": 10, "test": 20} if "fewshot" in file else {"train": max(2, 1 + 40 // len(classes)), "test": 1}
    counts |= {"val": 1} if "part" in file else {}
    parts = shapenetpart.PARTS if "part" in file else {}
    points = 2048 if parts else 1024 if "sweethome3d" in file else 40
    random = np.random.RandomState(0)

    def read(name: str) -> Sample:
        part = np.resize(parts[name], points).astype(np.uint8) if parts else None
        return Sample(random.rand(points, 3).astype(np.float32), part)

    items = [
        Item(f"{name} {split} {i}", label, split, partial(read, name))
        for split, count in counts.items()
        for label, name in enumerate(classes)
        for i in range(count)
    ]
    names = shapenetpart.PART_NAMES if parts else ()
    return Source("small", items, tuple(classes), "y", "CC0", tuple(counts), points, names)


def provide(words: Sequence[str], clone: Path) -> None:
    """Put what a command takes for given, and is not there, into the working folder."""
    for name, command in _GIVEN.items():
        named = any(word == name or word.startswith(f"{name}/") or word.endswith(f"={name}") for word in words)
        if not named or Path(name).exists():
            continue
        run = _trained(command, clone)
        weights = run / "checkpoints" / "merged_last.pt"
        Path(name).parent.mkdir(exist_ok=True)
        if name.endswith(".pth"):  # an official file: no config in it
            save_base_model(torch.load(weights, weights_only=False)["base_model"], Path(name))
        elif name.endswith(".pt"):
            shutil.copy(weights, name)
        else:
            shutil.copytree(run, name)


def named_in(config: str) -> list[str]:
    """The runs that an experiment or a comparison begins with."""
    path = find_config(config)
    return [] if path is None else re.findall(r"runs/\w+(?=/checkpoints)", path.read_text())


def _trained(command: list[str], clone: Path) -> Path:
    """Return the folder of a run, which is trained once."""
    run = clone / "given" / "_".join(command).replace("/", "_")
    if not run.exists():
        provide([*command, *named_in(command[0])], clone)
        assert cli.main(["train", *command, f"output={run}"]) == 0
    return run


class Here:
    """Stands in for the process of a run of a comparison: the run is over when it has begun."""

    def __init__(self, command: list[str], **_: object) -> None:
        self.returncode = cli.main(command[command.index("pc_ewa") + 1 :])

    def poll(self) -> int:
        """Return the exit code."""
        return self.returncode
