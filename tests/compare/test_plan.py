"""The config of a comparison: what is wrong with it stops it before anything runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compare_folder import finish

from pc_ewa.compare import Plan, load_plan, outline
from pc_ewa.compare import plan as plan_module
from pc_ewa.compare.sweep import sweep_runs
from pc_ewa.errors import ConfigError

Make = Callable[..., Plan]
REPOSITORY = Path(__file__).parent.parent.parent
CONFIGS = sorted((REPOSITORY / "configs" / "compare").glob("*.yaml"))
DENSE = {"title": "dense", "changes": ["ewa=null"]}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"seed": [0]}, "unknown key 'seed'; did you mean 'seeds'?"),
        ({"seeds": []}, "seeds=[]"),
        ({"seeds": [0, 1, 0]}, "seeds=[0, 1, 0]: a seed is there twice"),
        ({"baseline": "dens"}, "unknown baseline 'dens'; did you mean 'dense'?"),
        ({"highlight": "rup"}, "unknown highlight 'rup'"),
        ({"variants": {}}, "variants={}"),
        ({"variants": {"a/b": DENSE}}, "a/b"),
        ({"variants": {"..": DENSE}}, "variants"),
        ({"variants": {"curves.png": DENSE}}, "curves.png: that is a file of the results"),
        ({"variants": {"dense": {**DENSE, "titel": "x"}}}, "unknown key 'variants.dense.titel'; did you mean 'title'?"),
        ({"variants": {"dense": {"changes": []}}}, "'variants.dense.title' is missing"),
        ({"variants": {"dense": {"title": "x", "changes": ["ewa.nun=3"]}}}, "variant dense: unknown key 'ewa.nun'"),
        ({"variants": {"dense": {"title": "x", "changes": ["seed=3"]}}}, "variants.dense.changes: seed=3: seeds says"),
        ({"changes": ["train.lr=1"]}, "changes: train.lr=1: the sweep chooses it"),
        ({"changes": ["ewa"]}, "variant dense: 'ewa'"),
        ({"experiment": "none.yaml"}, "none.yaml"),
        ({"sweep": {"key": "train.lr", "values": []}}, "sweep.values=[]"),
        ({"sweep": {"key": "train.lr", "values": [0.1, 0.1000000001]}}, "a value (to six digits) is there twice"),
        ({"sweep": {"key": "train.lr", "values": [-1.0]}}, "variant dense: train.lr=-1.0"),
        ({"sweep": {"key": "train.rl", "values": [1.0]}}, "variant dense: unknown key 'train.rl'"),
        # Setting these would give dense experts, and both an average.
        (
            {"sweep": {"key": "ewa.share_rate", "values": [0.1]}},
            "variant dense: sweep.key=ewa.share_rate is not a number",
        ),
        (
            {"sweep": {"key": "average.decay", "values": [0.9]}},
            "variant dense: sweep.key=average.decay is not a number",
        ),
        ({"sweep": {"key": "seed", "values": [1, 2]}}, "sweep.key=seed: seeds says which"),
        ({"sweep": {"key": "output", "values": [1, 2]}}, "sweep.key=output: every run has a folder of its own"),
        ({"sweep": {"key": "model.num_classes", "values": [3]}}, "variant dense: unknown key 'model.num_classes'"),
        ({"sweep": {"key": "data.val_fraction", "values": [0.1]}}, "sweep.key=data.val_fraction: scores on other"),
        ({"variants": {"a": DENSE, "b": DENSE}}, "the title 'dense' is there twice"),
        ({"output": "a\0b"}, "output='a\\x00b': no folder has a NUL in its name"),
        ({"sweep": {"key": "train.lr", "values": [0.1], "seeds": [1, 1]}}, "sweep.seeds=[1, 1]: a seed is there twice"),
    ],
)
def test_a_wrong_comparison_is_one_line(plan: Make, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as stop:
        plan(**keys)
    assert message in str(stop.value)


def test_an_experiment_is_not_a_comparison(toy_config: Path) -> None:
    with pytest.raises(ConfigError, match=r"toy\.yaml is one experiment"):
        load_plan(toy_config)


def test_the_runs_are_what_a_user_would_type(plan: Make, toy_config: Path) -> None:
    made = plan(changes=["train.steps=3"])
    assert [str(run.folder) for run in sweep_runs(made)] == [
        f"runs/compare/toys/{variant}/lr_{value}/seed_0" for variant in ("dense", "ewa") for value in ("0.001", "0.01")
    ]
    run = made.run("ewa", 1e-2, 1)
    assert run.overrides == (
        "wandb.mode=disabled",
        "train.steps=3",
        "ewa.num_experts=2",
        "train.lr=0.01",
        "seed=1",
        'output="runs/compare/toys/ewa/lr_0.01/seed_1"',
    )
    experiment = made.resolve(run)
    assert (experiment.seed, experiment.train.lr, experiment.train.steps) == (1, 0.01, 3)
    assert (experiment.output, experiment.trackers["wandb"]["mode"]) == (
        "runs/compare/toys/ewa/lr_0.01/seed_1",
        "disabled",
    )


def test_without_a_sweep_there_is_no_folder_for_its_value(plan: Make) -> None:
    made = plan("sweep=null", "output=elsewhere", changes=["train.lr=0.1"])
    assert sweep_runs(made) == []
    assert [str(run.folder) for run in made.final_runs("dense", None)] == [
        "elsewhere/dense/seed_0",
        "elsewhere/dense/seed_1",
    ]


def test_check_says_what_is_done_and_what_is_to_do(plan: Make) -> None:
    made = plan()
    finish(made, made.run("dense", 1e-3, 0), val=0.2)
    finish(made, made.run("dense", 1e-2, 0), val=0.4)
    lines = outline(made).splitlines()
    assert "done   runs/compare/toys/dense/lr_0.01/seed_0" in lines
    assert "to do  runs/compare/toys/dense/lr_0.01/seed_1" in lines  # chosen already
    assert "to do  runs/compare/toys/ewa/lr_0.01/seed_0" in lines
    assert lines[-2:] == [
        "Toys: 2 runs done, 4 to do",
        "the sweep then chooses train.lr, and the other seeds follow: ewa",
    ]
    assert not list(Path("runs/compare/toys").glob("*.json"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_comparison_of_the_repository_is_a_valid_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    made = load_plan(path.relative_to(REPOSITORY))
    assert made.baseline == "dense"
    assert len(made.seeds) >= 3


def test_the_file_is_read_once_and_every_run_resolved_once(plan: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    read, resolved = [], []
    read_yaml, resolve = plan_module.read_yaml, plan_module.resolve
    monkeypatch.setattr(plan_module, "read_yaml", lambda path: read.append(str(path)) or read_yaml(path))
    monkeypatch.setattr(plan_module, "resolve", lambda content: resolved.append(content) or resolve(content))
    made = plan()
    assert read == ["toys.yaml", made.comparison.experiment]
    assert len(resolved) == 6  # two variants at two values, and without the sweep
    run = made.run("ewa", 1e-2, 0)
    assert made.resolve(run) is made.resolve(made.run("ewa", 1e-2, 0))
    assert made.resolve(made.run("ewa", 1e-2, 1)).seed == 1
    assert (len(read), len(resolved)) == (2, 7)
