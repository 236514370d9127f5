"""What the trackers keep of a run is read back from their files; a new tracker is one class and one line."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from cut_off import run_until

from pc_ewa import package
from pc_ewa.config import Experiment, dump, resolve
from pc_ewa.errors import ConfigError
from pc_ewa.trackers import TRACKERS, Backend, Cell, Cloud, TrackedRun
from pc_ewa.train import run
from pc_ewa.train.run_folder import RunFolder
from pc_ewa.train.tracking import check_trackers, with_short_names
from pc_ewa.yaml_config import parse_yaml

MakeExperiment = Callable[..., Experiment]
NUMBERS = (
    "loss",
    "accuracy",
    "epoch",
    "lr",
    "share_rate",
    "samples_per_second",
    "grad_norm",
    "val_loss",
    "val_accuracy",
)
LAYERS = ("spread/blocks.1", "spread/mean", "cosine/blocks.1", "cosine/mean")  # every other block has experts
needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="the optional package tensorboard is not installed"
)


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who never logged in, with no variable of W&B."""
    for variable in ("MODE", "PROJECT", "ENTITY", "NAME", "RUN_GROUP", "TAGS", "NOTES", "DATA_DIR"):
        monkeypatch.delenv(f"WANDB_{variable}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def page(folder: Path) -> tuple[Path | None, str]:
    (folder / "report.html").write_text("<p>report</p>")
    return folder / "report.html", "report page"


def test_wandb_keeps_all_that_is_to_be_seen(
    experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A resumed run in a folder with a space; the variables count where the config is silent."""
    for variable, value in (("PROJECT", "not this"), ("NAME", "named"), ("TAGS", "a, b")):
        monkeypatch.setenv(f"WANDB_{variable}", value)
    made = experiment("wandb={project: clouds, group: seeds, notes: why}", f"output={tmp_path}/a run")
    run_until(2, made, monkeypatch)
    summary = run(made, page)
    printed = capsys.readouterr().out

    identity = (tmp_path / "a run" / "wandb_id").read_text()
    parts = sorted((tmp_path / "a run" / "wandb").glob("offline-run-*"))
    (line,) = [line for line in printed.splitlines() if " sync --id " in line]
    command = shlex.split(line.partition(": ")[2])
    assert command[1:] == ["sync", "--id", identity, *map(str, parts)]
    assert len(parts) == 2

    records = _leet(parts[-1])
    (about,) = [record["run"] for record in records if record["type"] == "run"]
    assert (about["run_id"], about["project"], about["display_name"]) == (identity, "clouds", "named")
    assert (about["run_group"], about["notes"], about["tags"]) == ("seeds", "why", ["a", "b"])
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    logged = {key: row["_step"] for row in history for key in row}
    assert {*NUMBERS, *LAYERS} <= logged.keys()
    assert logged["val_loss"] == logged["report.path"] == 4
    assert "per_class.path" in logged
    assert "worst_mistakes.path" in logged
    assert any(key.startswith("confusion_matrix") for key in logged)
    artifacts = [record["artifact"] for record in records if record["type"] == "artifact"]
    merged = [a for a in artifacts if a["name"] == f"merged-{identity}"]
    assert {alias for a in merged for alias in a["aliases"]} >= {"last", "best"}
    about_model = merged[0]["metadata"]
    about_model = json.loads(about_model) if isinstance(about_model, str) else about_model
    assert about_model["class_names"] == ["sphere", "cube", "torus"]
    assert about_model["metrics"]["test_accuracy_merged"] == summary["test_accuracy_merged"]
    assert about_model["config"]["model"]["name"] == "point_mae_classifier"
    tables = {path.name.split("_4_")[0]: json.loads(path.read_text()) for path in parts[-1].rglob("*.table.json")}
    assert tables["worst_mistakes"]["columns"] == ["name", "true", "predicted", "probability", "cloud"]
    (shown,) = [artifact for artifact in artifacts if "worst_mistakes" in artifact["name"]]
    clouds = [Path(entry["local_path"]) for entry in shown["manifest"]["contents"] if "object3D" in entry["path"]]
    assert len(clouds) == len(tables["worst_mistakes"]["data"]) > 0
    assert all(cloud.is_file() and tmp_path in cloud.parents for cloud in clouds)
    assert not list((tmp_path / "home").rglob("artifacts/staging/*"))


def _leet(folder: Path) -> list[dict[str, Any]]:
    done = subprocess.run(
        [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", folder],
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@needs_tensorboard
def test_tensorboard_keeps_all_that_is_to_be_seen(experiment: MakeExperiment, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(experiment("tensorboard={}"), page)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"tensors": 0, "scalars": 0})
    events.Reload()
    assert {*NUMBERS, *LAYERS} <= {*events.Tags()["scalars"]}
    assert [event.step for event in events.Scalars("val_loss")] == [2, 4]
    texts = {"config", "summary", "per_class", "worst_mistakes", "confusion_matrix", "report", "merged/last"}
    found = {tag.removesuffix("/text_summary") for tag in events.Tags()["tensors"]}
    assert texts <= found | {tag.rpartition("/")[0] for tag in found}
    assert "confusion_matrix" in events.Tags()["images"]
    assert any(tag.startswith("worst_mistakes/1") for tag in found)


class Noting(Backend):
    """A tracker of another package."""

    title = "Notes"
    seen: list[tuple[Any, ...]] = []  # noqa: RUF012

    def __init__(self, run: TrackedRun, *, book: str = "a") -> None:
        self.book = book

    @classmethod
    def wanted(cls, **settings: Any) -> bool:
        return True

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self.seen.append(("metrics", self.book, step, metrics))

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        self.seen.append(("table", name))

    def confusion(self, step: int, class_names: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
        self.seen.append(("confusion", counts))

    def clouds(self, step: int, name: str, clouds: Sequence[Cloud]) -> None:
        self.seen.append(("clouds", name, clouds))

    def page(self, step: int, name: str, path: Path) -> None:
        self.seen.append(("page", name))

    def file(self, name: str, path: Path, metadata: Mapping[str, Any], aliases: Sequence[str] = ()) -> None:
        self.seen.append(("file", path))

    def summary(self, summary: Mapping[str, Any]) -> None:
        self.seen.append(("summary", summary))

    def close(self, failed: bool) -> list[str]:
        return ["closed" if not failed else "failed"]


@pytest.fixture
def noting(monkeypatch: pytest.MonkeyPatch) -> type[Noting]:
    monkeypatch.setitem(TRACKERS, "notes", Noting)
    monkeypatch.setattr(Noting, "seen", [])
    return Noting


@pytest.mark.parametrize(
    ("model", "view"), [("point_mae", "reconstruction"), ("dvae", "reconstruction"), ("point_mae_segmenter", "parts")]
)
def test_a_new_tracker_is_one_class_and_one_line(
    noting: type[Noting],
    tiny: MakeExperiment,
    model: str,
    view: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(tiny(model, "notes.book=b"))
    ((_, _, clouds),) = [entry for entry in noting.seen if entry[0] == "clouds" and entry[1] == view]
    assert len(clouds) == 9
    assert all(len(cloud.points) == len(cloud.colours) for cloud in clouds)
    metrics = [entry for entry in noting.seen if entry[0] == "metrics"]
    assert {entry[1] for entry in metrics} == {"b"}
    assert any("val_loss" in entry[3] for entry in metrics)
    assert capsys.readouterr().out.endswith("closed\n")
    assert parse_yaml((tmp_path / "run" / "config.yaml").read_text())["notes"] == {"book": "b"}


def test_its_keys_are_checked(noting: type[Noting], experiment: MakeExperiment) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'notes\.bok'; did you mean 'book'"):
        experiment("notes.bok=b")
    with pytest.raises(ConfigError, match="notes=3: should be a section of keys"):
        experiment("notes=3")


def test_what_cannot_be_shown_ends_no_run(
    noting: type[Noting],
    experiment: MakeExperiment,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("no view")

    monkeypatch.setattr("pc_ewa.train.exhibits.judge", broken)
    run(experiment("notes={}"), broken)
    assert capsys.readouterr().out.count("no view") == 2
    assert RunFolder(tmp_path / "run").is_finished
    assert [entry[0] for entry in noting.seen].count("file") >= 1


def test_null_switches_off_and_old_sections_load(experiment: MakeExperiment) -> None:
    assert experiment("wandb=null").trackers == {}
    old = resolve(parse_yaml(dump(experiment())) | {"wandb": {"mode": "offline", "project": "pc-ewa"}})
    assert old.trackers["wandb"] | {"mode": "offline", "project": "pc-ewa"} == old.trackers["wandb"]
    assert resolve(parse_yaml(dump(old))) == old


@pytest.mark.parametrize(
    ("override", "variables", "message"),
    [
        ("wandb={project: a/b}", {}, r"^wandb\.project='a/b': "),
        ("wandb={tags: ['']}", {}, r"^wandb\.tags=\('',\): "),
        ("wandb={}", {"WANDB_PROJECT": "a/b"}, r"^WANDB_PROJECT='a/b': "),
        ("wandb={}", {"WANDB_MODE": "perhaps"}, r"^WANDB_MODE=perhaps: should be one of offline, online, disabled"),
    ],
)
def test_what_wandb_refuses_is_one_line_before_anything_starts(
    experiment: MakeExperiment,
    override: str,
    variables: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message) as caught:
        check_trackers(experiment(override))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("override", "watched"), [("wandb={}", False), ("wandb={mode: offline}", True)])
def test_the_config_counts_more_than_a_variable(
    experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch, override: str, watched: bool
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert TRACKERS["wandb"].wanted(**experiment(override).trackers["wandb"]) is watched


def test_tensorboard_that_is_missing_names_its_extra(
    experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(package.MissingPackageError, match="tensorboard"):
        check_trackers(experiment("tensorboard={}"))


def test_layers_have_short_names_unless_two_would_be_one() -> None:
    assert with_short_names(
        {"ewa/blocks.blocks.3.mlp/spread": 1.0, "ewa/blocks.blocks.4.mlp/spread": 3.0, "lr": 1}
    ) == {
        "lr": 1,
        "spread/blocks.3": 1.0,
        "spread/blocks.4": 3.0,
        "spread/mean": 2.0,
    }
    long = with_short_names({"ewa/a.blocks.3.mlp/cosine": 1.0, "ewa/b.blocks.3.mlp/cosine": 3.0})
    assert long == {"cosine/a.blocks.3.mlp": 1.0, "cosine/b.blocks.3.mlp": 3.0, "cosine/mean": 2.0}


DOCUMENTED = (Path(__file__).parents[2] / "docs" / "tracking.md").read_text().partition("## metrics.jsonl")[2]


@pytest.mark.parametrize("model", ["point_mae_classifier", "point_mae_segmenter", "dvae", "point_bert", "point_mae"])
def test_every_key_of_metrics_is_documented(tiny: MakeExperiment, tokenizer: Path, model: str, tmp_path: Path) -> None:
    """Each key for its kind of run; those of experts and gates by the classifier."""
    overrides = [f"tokenizer={tokenizer}"] if model == "point_bert" else []
    overrides += ["ewa={num_experts: 2, gate: {}}"] if model == "point_mae_classifier" else []
    run(tiny(model, *overrides))
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", DOCUMENTED, re.MULTILINE)
    documented = {key: kinds for names, kinds in rows for key in re.findall(r"`(.+?)`", names)}
    kind = {"point_mae_classifier": "classifiers", "point_mae_segmenter": "segmenters"}.get(model, model)
    written = {re.sub("ewa/.*/", "ewa/LAYER/", key) for line in RunFolder(tmp_path / "run").metrics() for key in line}
    assert written <= documented.keys()
    assert {key for key, kinds in documented.items() if kinds == "all" or kind in kinds.split(", ")} <= written
    if model == "point_mae_classifier":
        assert {key for key, kinds in documented.items() if kinds.startswith("with `ewa")} <= written
