"""JSON Schemas of configs: fresh, complete, named by every config, true to it, and refusing what the code refuses."""

import copy
import doctest
import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

import pc_ewa.compare.schema
import pc_ewa.config.schema
from pc_ewa.config import resolve
from pc_ewa.data import DATASETS
from pc_ewa.errors import ConfigError
from pc_ewa.models import MODELS
from pc_ewa.trackers import TRACKERS
from pc_ewa.yaml_config import apply_overrides, read_yaml

REPOSITORY = Path(__file__).parent.parent
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))
SCHEMAS = {
    kind: json.loads((REPOSITORY / f"configs/schema/{kind}.json").read_text()) for kind in ("experiment", "comparison")
}
VALIDATORS = {kind: Draft7Validator(schema) for kind, schema in SCHEMAS.items()}
QUICKSTART = read_yaml(REPOSITORY / "configs/quickstart.yaml")

WRONG = [
    "train.epoch=3",
    "train.epochs=0",
    "train.epochs=many",
    "train.precision=fp64",
    "train.warmup=1",
    "train.batch_size=true",
    "train=3",
    "data.name=modelnet41",
    "data.variant=obj_bg",
    "data={name: scanobjectnn, variant: hard}",
    "data={name: hdf5}",
    "model.dims=24",
    "model.dim=wide",
    "model.name=point_mea",
    "model={name: point_bert, mask_type: some}",
    "model.num_classes=40",
    "ewa.experts=4",
    "ewa.init=random",
    "ewa.gate.weight=1",
    "augment.scale=[1, 2, 3]",
    "average.kind=mean",
    "probe={every: 3}",
    "wandb.mode=sometimes",
    "tensorboard={folder: logs}",
    "recipe=theirs",
    "trian={}",
]


def test_the_files_are_those_that_the_code_makes() -> None:
    assert runpy.run_path(str(REPOSITORY / "docs/config_keys.py"))["stale"](REPOSITORY) == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_names_its_schema_and_follows_it(path: Path) -> None:
    named = re.match(r"# yaml-language-server: \$schema=(\S+)\n", path.read_text())
    assert named, "the first line is for editors"
    kind = "comparison" if path.parent.name == "compare" else "experiment"
    assert (path.parent / named[1]).resolve() == REPOSITORY / f"configs/schema/{kind}.json"
    assert [error.message for error in VALIDATORS[kind].iter_errors(read_yaml(path))] == []


@pytest.mark.parametrize("override", WRONG)
def test_what_the_code_refuses_the_schema_refuses(override: str) -> None:
    content = apply_overrides(copy.deepcopy(QUICKSTART) | {"output": "runs/x"}, [override])
    assert not VALIDATORS["experiment"].is_valid(content)
    with pytest.raises(ConfigError):
        resolve(content)


def test_wrong_comparisons_are_refused() -> None:
    right = read_yaml(REPOSITORY / "configs/compare/furniture.yaml")
    for override in ("seed=[0]", "seeds=[-1]", "variants.ewa.change=[]", "sweep.values=[]", "folds=1", "title=null"):
        assert not VALIDATORS["comparison"].is_valid(apply_overrides(copy.deepcopy(right), [override])), override


def keys(schema: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a schema with what is said of it."""
    if isinstance(schema, dict):
        for key, content in schema.get("properties", {}).items():
            if "const" not in content:  # of a condition
                yield f"{where}.{key}", content
        for key, content in schema.items():
            yield from keys(content, f"{where}.{key}")
    elif isinstance(schema, list):
        for content in schema:
            yield from keys(content, where)


def test_every_key_says_what_it_means() -> None:
    for kind, schema in SCHEMAS.items():
        found = dict(keys(schema))
        assert len(found) > 15
        assert [key for key, content in found.items() if not content.get("description")] == [], kind


def test_every_dataset_model_and_tracker_is_there() -> None:
    known = SCHEMAS["experiment"]["definitions"]
    assert set(known["Data"]["properties"]["name"]["enum"]) == set(DATASETS)
    assert set(known["Model"]["properties"]["name"]["enum"]) == set(MODELS)
    assert set(TRACKERS) <= set(SCHEMAS["experiment"]["properties"])


def test_examples_run() -> None:
    for module in (pc_ewa.config.schema, pc_ewa.compare.schema):
        result = doctest.testmod(module)
        assert result.attempted
        assert result.failed == 0
