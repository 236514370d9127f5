"""The folder of a run: what is read back, what is refused, and folders of earlier versions."""

import ast
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cut_off import run_until_saved

from pc_ewa.compare.results import collect_folders
from pc_ewa.config import Experiment
from pc_ewa.errors import CheckpointError, ConfigError, Error
from pc_ewa.train import run
from pc_ewa.train.run_folder import RunFolder

MakeExperiment = Callable[..., Experiment]
PACKAGE = Path(__file__).parents[2] / "pc_ewa"


def test_metrics_of_later_steps_and_half_lines_are_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    lines = [{"step": step, "loss": step / 3} for step in (1, 2, 2, 3)]
    for line in lines:
        folder.record(line["step"], {"loss": line["loss"]})
    path = tmp_path / "metrics.jsonl"
    with path.open("ab") as file:
        file.write(b'[1]\n{"loss": 1}\n\xff\xfe\n{"step": 1, "lo')
    assert folder.metrics() == lines
    folder.forget_metrics_after(2)
    assert [json.loads(line) for line in path.read_text().splitlines()] == lines[:3]
    assert path.read_text().endswith("\n")
    folder.forget_metrics_after(0)
    assert path.read_text() == ""


def test_a_folder_without_a_run_has_nothing_and_nothing_is_written(tmp_path: Path, experiment: MakeExperiment) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.check(experiment())
    folder.forget_metrics_after(0)
    assert (folder.summary(), folder.metrics(), folder.checkpoints.newest()) == (None, [], None)
    assert (folder.is_begun, folder.is_finished) == (False, False)
    assert os.listdir(tmp_path) == []


def test_a_finished_run_reads_back(trained: Any) -> None:
    folder = RunFolder(trained.folder)
    assert folder.summary() == trained.summary
    assert folder.config()["seed"] == trained.experiment.seed
    assert folder.merged("last").is_file()
    assert folder.merged("best").is_file()
    assert folder.metrics()[-1]["step"] == 4


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"main_metric": []}', '{"main_metric": "acc', "\0", "[" * 100_000]
)
def test_a_damaged_summary_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"summary\.json is damaged; ") as caught:
        RunFolder(tmp_path).summary()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "- a", "a: [", "\0", "a: &a [*a]", "[" * 3000])
def test_a_damaged_config_is_one_line(tmp_path: Path, experiment: MakeExperiment, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"config\.yaml is damaged; "):
        RunFolder(tmp_path).check(experiment())


@pytest.mark.parametrize("content", ["", "model: {na", "\0"])
def test_a_damaged_config_heals_from_the_newest_checkpoint(
    experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    run_until_saved(2, experiment(), monkeypatch)
    (tmp_path / "run" / "config.yaml").write_text(content)
    with pytest.raises(ConfigError, match="seed=0 there, 1 asked"):
        run(experiment("seed=1"))
    run(experiment())
    assert RunFolder(tmp_path / "run").config()["seed"] == 0


def test_an_empty_id_of_the_tracker_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "wandb_id").write_text("")
    folder = RunFolder(tmp_path)
    assert folder.tracker_id("abc") == "abc"
    assert folder.tracker_id("other") == "abc"


def test_longer_training_of_a_finished_run_starts_from_its_weights(trained: Any, experiment: MakeExperiment) -> None:
    with pytest.raises(ConfigError, match=r"train\.steps=4 there, 8 asked") as caught:
        run(experiment("train.steps=8", f"output={trained.folder}"))
    assert f"--from {RunFolder(trained.folder).merged('last')}" in str(caught.value)


# Folders of the version before RunFolder.

_OLD_NAMES = {"main_metric": "headline", "val_samples": "val_shapes", "test_samples": "test_shapes"}


def test_the_summary_of_an_earlier_version_has_the_keys_of_today(trained: Any, tmp_path: Path) -> None:
    old = {_OLD_NAMES.get(key, key): value for key, value in trained.summary.items()}
    assert "headline" in old
    (tmp_path / "summary.json").write_text(json.dumps(old))
    assert RunFolder(tmp_path).summary() == trained.summary | {"output": str(tmp_path)}


def test_a_finished_run_of_an_earlier_version_is_taken_as_finished(
    trained: Any, experiment: MakeExperiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = experiment()
    folder = tmp_path / "run"
    folder.mkdir()
    config = yaml.safe_load((trained.folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(old_config(config | {"output": str(folder)})))
    old = {_OLD_NAMES.get(key, key): value for key, value in trained.summary.items()}
    (folder / "summary.json").write_text(json.dumps(old | {"output": str(folder)}))
    summary = run(made)
    assert summary is not None
    assert summary["test_samples"] == trained.summary["test_samples"]
    assert "is finished" in capsys.readouterr().out


def test_a_run_that_an_earlier_version_began_goes_on_to_the_same_weights(
    trained: Any, experiment: MakeExperiment, tmp_path: Path
) -> None:
    """Its checkpoint as it was written then: no digest of the data, no meter, its config with the gate last."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    source = trained.folder / "checkpoints" / "step-00000003.pt"
    content = torch.load(source, weights_only=True)
    del content["data"], content["progress"]["meter"]
    content["config"] = old_config(content["config"] | {"output": str(folder)})
    torch.save(content, folder / "checkpoints" / source.name)
    shutil.copy(trained.folder / "checkpoints" / "best.pt", folder / "checkpoints")
    (folder / "config.yaml").write_text(yaml.safe_dump(content["config"], sort_keys=False))
    summary = run(experiment())
    assert summary is not None
    assert "resuming after step 3" in (folder / "log.txt").read_text()
    here, there = (
        torch.load(path / "checkpoints" / "last.pt", weights_only=True)["model"] for path in (folder, trained.folder)
    )
    assert all(torch.equal(here[key], value) for key, value in there.items())


def old_config(config: dict[str, Any]) -> dict[str, Any]:
    """The resolved config as the version before wrote it: its `ewa` section had an order of its own."""
    ewa = dict(config["ewa"])
    return config | {"ewa": {**{key: ewa[key] for key in sorted(ewa) if key != "gate"}, "gate": ewa["gate"]}}


def test_no_other_module_knows_the_name_of_a_file_of_a_run() -> None:
    """In code: docstrings and comments may speak of them."""
    names = ("summary.json", "metrics.jsonl", "config.yaml", "log.txt", "checkpoints", "last.pt", "best.pt")
    knowing = set()
    for room in ("train", "compare", "eval", "models"):
        for path in (PACKAGE / room).rglob("*.py"):
            tree = ast.parse(path.read_text())
            docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in docs]
            if any(isinstance(text, str) and re.search(rf"(^|/)({'|'.join(names)})$", text) for text in texts):
                knowing.add(path.relative_to(PACKAGE).as_posix())
    assert knowing == {"train/run_folder.py"}


# Damage.


@pytest.mark.parametrize("content", [{"main_metric": "accuracy"}, {"main_metric": "zzz"}], ids=str)
def test_a_summary_that_lacks_what_a_run_leaves_is_one_line(
    trained: Any, tmp_path: Path, content: dict[str, Any]
) -> None:
    made = trained.experiment.model_copy(update={"output": str(tmp_path)})
    RunFolder(tmp_path).begin(made, {})
    (tmp_path / "summary.json").write_text(json.dumps(content))
    with pytest.raises(Error) as caught:
        run(made)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="damaged"):
        collect_folders([tmp_path])


def test_odd_lines_of_metrics_and_odd_folders_stop_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": "x"}\n{"step": null}\n{"step": 1, "shapes_per_second": 2.0}\n')
    (tmp_path / ".x.tmp").mkdir()
    (tmp_path / ".y.tmp").write_text("half")
    folder.tidy()
    assert sorted(os.listdir(tmp_path)) == [".x.tmp", "metrics.jsonl"]
    assert folder.metrics() == [{"step": 1, "samples_per_second": 2.0}]
    folder.forget_metrics_after(1)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_finished_run_is_shown_where_nothing_can_be_written(
    trained: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(path: Path, *arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "touch", refused)
    assert run(trained.experiment) == trained.summary
    assert "is finished" in capsys.readouterr().out
