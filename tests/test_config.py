"""Experiments: what a YAML file and overrides become, and what is said of those that cannot run."""

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from pc_ewa import ExpertAverager, Gate, upcycle
from pc_ewa.config import Experiment, Train, dump, load_experiment, resolve
from pc_ewa.errors import ConfigError, Error
from pc_ewa.train import run
from pc_ewa.train import setup as SETUP
from pc_ewa.train.distributed import join_world
from pc_ewa.train.run_folder import RunFolder
from pc_ewa.train.setup import build

REPOSITORY = Path(__file__).parent.parent
# Those in configs/compare are no experiments: they name some.
CONFIGS = sorted(p for p in (REPOSITORY / "configs").rglob("*.yaml") if p.parent.name != "compare")
MakeExperiment = Callable[..., Experiment]


def section(experiment: Experiment) -> dict[str, Any]:
    """The arguments of EWA in an experiment that has some."""
    assert experiment.ewa is not None
    return experiment.ewa.arguments


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_its_dump_resolves_to_the_same_experiment(path: Path) -> None:
    experiment = load_experiment(path)
    assert resolve(yaml.safe_load(dump(experiment))) == experiment
    assert experiment.output == f"runs/{path.stem}"


def test_the_dump_is_a_config_that_loads(tmp_path: Path, experiment: MakeExperiment) -> None:
    made = experiment("augment.scale=null", "ewa.layers=[0]", "init_from='a: b'")
    (tmp_path / "config.yaml").write_text(dump(made))
    assert load_experiment(tmp_path / "config.yaml") == made


def test_the_quickstart_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    with join_world("cpu") as world:
        setup = build(load_experiment("configs/quickstart.yaml"), world)
    assert setup.averager is not None
    assert (len(setup.splits.test), setup.splits.val_is_cut) == (154, True)
    assert len(setup.splits.train) + len(setup.splits.val) == 459


def test_a_config_holds_every_default_once_resolved(experiment: MakeExperiment) -> None:
    content = yaml.safe_load(dump(experiment()))
    assert content["train"].keys() == Train.model_fields.keys()
    assert content["model"]["head_dropout"] == 0.5
    assert "num_classes" not in content["model"]


def test_the_ewa_section_has_the_arguments_and_defaults_of_the_two_functions(experiment: MakeExperiment) -> None:
    parameters = [
        *inspect.signature(upcycle).parameters.values(),
        *inspect.signature(ExpertAverager).parameters.values(),
    ]
    expected = {p.name: p.default for p in parameters if p.name not in ("model", "ffn", "total_steps")}
    assert section(experiment("ewa={}")) == expected
    assert expected["num_experts"] == 4


def test_coupling_by_the_learning_rate_is_a_matter_of_config_and_its_share_rate_falls_with_it(
    experiment: MakeExperiment,
) -> None:
    with pytest.raises(ConfigError, match=r"^ewa\.alpha=None with schedule='lr'"):
        experiment("ewa.schedule=lr")
    made = experiment("ewa.schedule=lr", "ewa.alpha=2e-3", "train.lr=1e-3", "train.min_lr=0", "train.steps=4")
    run(made)
    lines = [json.loads(line) for line in (Path(made.output) / "metrics.jsonl").read_text().splitlines()]
    rates = [line["share_rate"] for line in lines if "share_rate" in line]
    count = section(made)["num_experts"]
    assert rates
    assert rates[-1] < (count - 1) / count / 4


def test_a_new_knob_of_ewa_is_one_argument_of_its_function(
    experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its default, its bound and its way to where it is used come from there, in every config and run."""
    seen = []

    class Rested(ExpertAverager):
        def __init__(self, model: nn.Module, share_rate: float = 0.3, *, rest: float = 0.25, **others: Any) -> None:
            super().__init__(model, share_rate, **others)
            if rest < 0:
                raise ValueError(f"rest={rest}; it must be at least 0")
            seen.append(rest)

    for module in (sys.modules["pc_ewa.config.resolve"], SETUP):
        monkeypatch.setattr(module, "ExpertAverager", Rested)
    assert section(experiment())["rest"] == 0.25
    with pytest.raises(ConfigError, match=r"^ewa\.rest=-1\.0; "):
        experiment("ewa.rest=-1")
    with pytest.raises(ConfigError, match=r"'ewa\.rset'.*'rest'"):
        experiment("ewa.rset=1")
    seen.clear()
    run(experiment("ewa.rest=0.5", "train.steps=1"))
    assert set(seen) == {0.5}


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.lr=5e-4", "train.lr", 5e-4),
        ("train.lr=5E-4", "train.lr", 5e-4),
        ("train.lr=+.5e-3", "train.lr", 5e-4),
        ("train.weight_decay=1", "train.weight_decay", 1.0),
        ("ewa=null", "ewa", None),
        ("ewa.num_experts=8", "ewa.arguments.num_experts", 8),
        ("ewa.layers=[1, 0]", "ewa.arguments.layers", [1, 0]),
        ("augment.scale=[0.8, 1.2]", "augment.scale", (0.8, 1.2)),
        ("augment.scale=null", "augment.scale", None),
        ("model.depth=3", "model.arguments.depth", 3),
        ("output=runs/a=b", "output", "runs/a=b"),
        ("wandb.project='12'", "wandb.project", "12"),
    ],
)
def test_overrides(experiment: MakeExperiment, override: str, key: str, value: object) -> None:
    found: object = experiment(override)
    for step in key.split("."):
        found = found[step] if isinstance(found, dict) else getattr(found, step)
    assert found == value
    assert type(found) is type(value)


def test_an_override_switches_a_section_on_that_is_off(experiment: MakeExperiment) -> None:
    assert section(experiment("ewa=null", "ewa.num_experts=8"))["num_experts"] == 8


def test_the_last_override_counts(experiment: MakeExperiment) -> None:
    assert experiment("seed=1", "seed=2").seed == 2


def test_yaml_anchors_and_merge_keys_work(tmp_path: Path, toy_config: Path) -> None:
    base = toy_config.read_text().replace("train: {", "train: {<<: {lr: 1e-3, min_lr: 1e-5}, lr: 1e-2, ")
    (tmp_path / "merge.yaml").write_text(base)
    train = load_experiment(tmp_path / "merge.yaml").train
    assert (train.lr, train.min_lr) == (1e-2, 1e-5)


REFUSED = {
    "trian.lr=1": "unknown key 'trian'; did you mean 'train'?",
    "train.leraning_rate=1": "unknown key 'train.leraning_rate'; choose from accumulate, batch_size, ",
    "train.warmpu=0.1": "unknown key 'train.warmpu'; did you mean 'warmup'?",
    "model.dimm=3": "unknown key 'model.dimm'; did you mean 'dim'?",
    "model.num_classes=3": "unknown key 'model.num_classes'; ",
    "data.paht=a.h5": "unknown key 'data.paht'; did you mean 'path'?",
    "data.num_point=3": "unknown key 'data.num_point'; did you mean 'num_points'?",
    "data.split=train": "unknown key 'data.split'; did you mean",
    "train.epochs=many": "train.epochs='many': should be a valid integer",
    "train.epochs=1.5": "train.epochs=1.5: should be a valid integer",
    "train.epochs=true": "train.epochs=True: should be a number, not a switch",
    "augment.jitter=true": "augment.jitter=True: should be a number, not a switch",
    "augment.rotate=3": "augment.rotate=3: should be true, false or freely",
    "epochs=3": "unknown key 'epochs'; did you mean 'train.epochs'?",
    "augment.scale=[1]": "'augment.scale.1' is missing",
    "augment.scale=[1, big]": "augment.scale.1='big': should be a valid number",
    "augment.scale=3": "augment.scale=3: should be a list, as in [a, b]",
    "wandb.tags=x": "wandb.tags='x': should be a list, as in [a, b]",
    "augment.scale=[2, 1]": "augment.scale=[2.0, 1.0]; give the smaller factor first",
    "model.depth=deep": "model.depth='deep': should be a valid integer",
    "model.depth=true": "model.depth=True: should be a number, not a switch",
    "model.mlp_ratio=.inf": "model.mlp_ratio=inf: should be a finite number",
    "data.path=3": "data.path=3: should be str | pathlib.Path",
    "train=3": "train=3: should be a section of keys",
    "ewa=none": "ewa='none': should be a section of keys, or null",
    "train.lr.peak=3": "train.lr={'peak': 3}: should be a valid number",
    "data.name.first=3": "'data.name.first=3': 'name' holds a value, not a section",
    "train.lr=": "train.lr=None: should be a valid number",
    "train.lr=.inf": "train.lr=inf: should be a finite number",
    "train.lr=.nan": "train.lr=nan: should be a finite number",
    "train.lr=0": "train.lr=0: should be greater than 0",
    "train.min_lr=1": "train.min_lr=1.0 is above train.lr=0.0005",
    "train.batch_size=1": "train.batch_size=1: should be greater than or equal to 2",
    "train.accumulate=3": "train.accumulate=3 does not divide train.batch_size=8",
    "train.precision=fp16": "train.precision='fp16': should be 'fp32' or 'bf16'",
    "wandb.mode=on": "wandb.mode=True: should be 'offline', 'online' or 'disabled'",
    "seed=-1": "seed=-1: should be greater than or equal to 0",
    "ewa.num_experts=1": "ewa.num_experts=1; ",
    "ewa.share_rate=0.51": "ewa.share_rate=0.51 with 2 experts; choose 0 to (N-1)/N = 0.5",
    "ewa.share_rate=-0.1": "ewa.share_rate=-0.1 with 2 experts; ",
    "ewa.start=1": "ewa.start=1.0, stop=1.0; ",
    "ewa.stop=0": "ewa.start=0.0, stop=0.0; ",
    "ewa.layers=2": "ewa.layers=2: should be ",
    "ewa.layers=[one]": "ewa.layers=['one']: should be ",
    "ewa.init=copi": "ewa.init='copi': should be 'copy' or 'independent'",
    "ewa.gate=top-1": "ewa.gate='top-1': should be a section of keys, such as ewa.gate.capacity_factor=..., or null",
    "ewa.gate.capacity=2": "unknown key 'ewa.gate.capacity'; did you mean 'capacity_factor'?",
    "ewa.gate.capacity_factor=0": "ewa.gate.capacity_factor=0.0; ",
    "ewa.every=0": "ewa.every=0; ",
    "ewa.ramp=0": "ewa.ramp=0.0; ",
    "ewa.ramp=true": "ewa.ramp=True: should be a number",
    "ewa.total_steps=9": "unknown key 'ewa.total_steps'; ",
    "ewa.gate={1: 2}": "ewa.gate.1=2: ",
    "ewa.gate.balance_weight=true": "ewa.gate.balance_weight=True: should be a number",
    "ewa.gate.balance_weight=-1": "ewa.gate.balance_weight=-1.0; ",
    "average=ema": "average='ema': should be a section of keys, such as average.kind=..., or null for none",
    "average.kind=mean": "average.kind='mean': should be 'ema' or 'swa'",
    "average.decay=1": "average.decay=1: should be less than 1",
    "average.start=1": "average.start=1: should be less than 1",
    "average.lr=0": "average.lr=0: should be greater than 0",
    "average.lr=1e-3": "average.lr=0.001 with kind=ema, which keeps the schedule; leave it out, or set kind=swa",
    "average.rate=1e-3": "unknown key 'average.rate'; ",
    "model.group_size=49": "model.group_size=49 is above data.num_points=48; lower it",
    "model.num_groups=49": "model.num_groups=49 is above data.num_points=48; lower it",
    "model.name=pointmae_classifier": "unknown model.name 'pointmae_classifier'; did you mean 'point_mae_classifier'?",
    "data.name=hdf": "unknown data.name 'hdf'; did you mean 'hdf5'?",
    "train.lr": "'train.lr' is not an override; write key=value, such as train.lr=1e-3",
    "=3": "'=3' is not an override; write key=value",
    "train.lr=[": "'train.lr=[': the value is not YAML; quote it",
    "data={name:hdf5}": "'data={name:hdf5}': YAML needs a blank after the colon: name: hdf5",
}


@pytest.mark.parametrize(("override", "message"), REFUSED.items(), ids=REFUSED)
def test_what_cannot_be_is_refused_in_one_line(experiment: MakeExperiment, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        experiment(override)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_averaging_that_ends_before_it_begins_is_refused(experiment: MakeExperiment) -> None:
    with pytest.raises(ConfigError, match=r"^ewa\.start=0\.5, stop=0\.5; "):
        experiment("ewa.start=0.5", "ewa.stop=0.5")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("ewa.gate.capacity_factor=2", "ewa.partition=sample"),
            "ewa.partition='sample' with a gate",
        ),
        (
            ("average.kind=swa", "average.decay=0.9"),
            "average.decay=0.9 with kind=swa, a plain mean; leave it out, or set kind=ema",
        ),
    ],
)
def test_keys_that_exclude_each_other_are_refused(
    experiment: MakeExperiment, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        experiment(*overrides)
    assert str(caught.value).startswith(message)


def test_folders_of_before_gates_and_averages_are_those_of_runs_without(
    trained: Any, experiment: MakeExperiment, tmp_path: Path
) -> None:
    """A run folder whose config.yaml has neither key is taken up all the same."""
    config = yaml.safe_load((trained.folder / "config.yaml").read_text())
    assert (config.pop("average"), config["ewa"].pop("gate")) == (None, None)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    RunFolder(tmp_path).check(experiment(f"output={trained.folder}"))
    with pytest.raises(ConfigError, match=r"average\.decay=None there, 0\.999 asked"):
        RunFolder(tmp_path).check(experiment(f"output={trained.folder}", "average.kind=ema"))


def test_a_gate_and_an_average_are_switched_on_by_a_key(experiment: MakeExperiment) -> None:
    made = experiment("ewa.gate.balance_weight=0.1", "average.kind=swa")
    assert section(made)["gate"] == Gate(capacity_factor=1.25, balance_weight=0.1)
    assert made.average is not None
    assert (made.average.start, made.average.begins, made.average.lr) == (None, 0.75, None)
    assert resolve(yaml.safe_load(dump(made))) == made
    ema = experiment("average.kind=ema").average
    assert ema is not None
    assert (ema.decay, ema.begins) == (0.999, 0)


def test_all_problems_are_told_at_once(experiment: MakeExperiment) -> None:
    with pytest.raises(ConfigError, match=r"train\.epochs='x': .*; unknown key 'trian'"):
        experiment("train.epochs=x", "trian=1")


FOUND_BY_CHECKING = {
    "model.num_heads=5": "num_heads=5 does not divide dim=16; choose one of 1, 2, 4, 8",
    "model.head_dropout=1": "head_dropout=1.0; it must be at least 0 and below 1",
    "model.depth=0": "depth=0; it must be at least 1",
    "model.encoder_dim=8": "encoder_dim=8 with dim=16",
    "ewa.layers=every-3": "ewa: layers='every-3' needs more than the 2 FFNs of the model",
    "ewa.layers=evry-2": "ewa: layers='evry-2'; choose 'all', 'every-k'",
    "ewa.layers=[2]": "ewa: layers=[2]; choose one or more different indices from 0 to 1",
    "task=clasify": "unknown task 'clasify'; did you mean 'classify'?",
    "device=tpu": "device='tpu'; choose auto, cpu, cuda or cuda:N",
    "device=cuda:77": "device='cuda:77' asks for GPU 77; this machine has",
    "train.batch_size=22": "train.batch_size=22 is above the 21 training s",
    "train.accumulate=8": "train.batch_size=8 over 1 processes and 8 accumulated steps; ",
    "data.num_points=65": "has clouds of 64 points; data.num_points=65 is above that",
    "data.path=none.h5": "none.h5 does not exist",
    "init_from=none.pth": "init_from=none.pth",
}


@pytest.mark.parametrize(("override", "message"), FOUND_BY_CHECKING.items(), ids=FOUND_BY_CHECKING)
def test_what_only_model_or_data_can_tell_is_found_before_training(
    experiment: MakeExperiment, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(Error) as caught:
        run(experiment(override))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_experts_beyond_memory_are_one_line(experiment: MakeExperiment, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^ewa\.num_experts=10000000000: .*memory"):
        run(experiment("ewa.num_experts=10000000000"))
    assert not (tmp_path / "run").exists()
