"""The checks of a comparison on this machine: what is missing or in the way stops it before anything runs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from compare_folder import finish

from pc_ewa.compare import Options, Plan, check_runs, compare, preflight
from pc_ewa.errors import ConfigError, Error

Make = Callable[..., Plan]


def test_a_folder_with_another_run_in_it_stops_the_comparison(plan: Make) -> None:
    made = plan()
    run = made.run("ewa", 1e-2, 1)
    finish(made, run)
    check_runs(made)
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    (run.folder / "config.yaml").write_text(yaml.safe_dump({**config, "recipe": "official"}))
    with pytest.raises(ConfigError, match=r"ewa/lr_0\.01/seed_1 holds a run with other settings"):
        check_runs(made)


def test_what_runs_start_from_is_looked_for_first(plan: Make) -> None:
    made = plan(changes=["init_from=none.pt"])
    with pytest.raises(Error, match=r"init_from=none\.pt"):
        check_runs(made)


def test_a_sweep_needs_a_validation_part(plan: Make) -> None:
    made = plan(changes=["data.val_fraction=0"])
    with pytest.raises(ConfigError, match="sweep needs a validation part"):
        check_runs(made)
    check_runs(plan("sweep=null", changes=["data.val_fraction=0"]))


def test_the_validation_part_of_every_variant_counts(plan: Make) -> None:
    dense = {"title": "dense", "changes": ["ewa=null"]}
    all_of_train = {"title": "all", "changes": ["data.val_fraction=0"]}
    made = plan(variants={"dense": dense, "all": all_of_train})
    with pytest.raises(ConfigError, match=r"variant all: the sweep needs a validation part.*data\.val_fraction=0"):
        check_runs(made)


def test_data_is_looked_for_first_and_loaded_once(plan: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = {"title": "dense", "changes": ["ewa=null"]}
    fewer = {"title": "fewer points", "changes": ["data.num_points=32"]}
    made = plan(variants={"dense": dense, "ewa": {"title": "EWA"}, "fewer": fewer})
    loaded: list[int] = []
    load = preflight.load_splits
    monkeypatch.setattr(preflight, "load_splits", lambda data, seed: loaded.append(data.num_points) or load(data, seed))
    check_runs(made)
    assert loaded == [48, 32]
    lost = {"title": "lost", "changes": ["data.path=none.h5"]}
    with pytest.raises(Error, match=r"none\.h5"):
        check_runs(plan(variants={"dense": dense, "lost": lost}))


def test_what_is_in_the_way_is_one_line(plan: Make) -> None:
    made = plan()
    made.output.mkdir(parents=True)
    (made.output / "dense").touch()
    with pytest.raises(ConfigError, match=r"toys/dense is a file; choose another output"):
        check_runs(made)
    (made.output / "dense").unlink()
    (made.output / "results.json").mkdir()
    with pytest.raises(ConfigError, match=r"toys/results\.json is a folder, where the results go"):
        check_runs(made)


@pytest.mark.parametrize(
    ("save", "problem"), [("file", "File exists"), ("file/in", "Not a directory"), ("docs", "is a")]
)
def test_copies_that_cannot_be_made_stop_it_too(plan: Make, save: str, problem: str) -> None:
    made = plan()
    Path("file").touch()
    Path("docs/toys.json").mkdir(parents=True)
    with pytest.raises(ConfigError, match=rf"--save {save}: .*{problem}.*; name a folder for the copies"):
        compare(made, Options(save=Path(save)))
    assert not made.output.exists()
