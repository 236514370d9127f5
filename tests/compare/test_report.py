"""Tables, words and files, from crafted runs."""

import csv
import datetime
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compare_folder import STATES, finish

from pc_ewa.compare import Options, Plan
from pc_ewa.compare import report as report_module
from pc_ewa.compare.execute import Broken
from pc_ewa.compare.report import as_csv, as_markdown, as_summary
from pc_ewa.compare.results import collect, read_results, without_paths
from pc_ewa.compare.run import report
from pc_ewa.compare.sweep import final_runs
from pc_ewa.errors import ConfigError
from pc_ewa.eval.metric import Metric
from pc_ewa.train.objectives import OBJECTIVES, Classify

Make = Callable[..., Plan]
COST = {"params_training": 1200, "params_inference": 1000, "flops": 2.5e6, "step_seconds": 0.02, "step_ratio": 1.1}
MINIMAL = {
    "title": "Digits",
    "main_metric": "accuracy",
    "higher_is_better": True,
    "baseline": "dense",
    "variants": {
        "dense": {"title": "dense", "scores": {"merged": {"0": 0.5, "1": 0.5}}},
        "ewa": {"title": "EWA", "scores": {"merged": {"0": 0.6, "1": 0.62}}},
    },
}


def swept(plan: Make) -> Plan:
    """Both variants are best at 0.01; there EWA has 60 and 62 %, dense 50 and 50 %."""
    made = plan()
    for variant, tests in (("dense", (0.5, 0.5)), ("ewa", (0.6, 0.62))):
        finish(made, made.run(variant, 1e-3, 0), val=0.1, test=1.0)
        for seed, test in enumerate(tests):
            finish(made, made.run(variant, 1e-2, seed), val=0.3, test=test, peak_memory=2**20 * (100 + seed))
    return made


def results(made: Plan, **more: Any) -> dict[str, Any]:
    costs = {"where": "1 CPU thread", "variants": {v: {**COST, "inference_seconds": 1e-3} for v in made.variants}}
    runs = {v: [run for run in found if run.files.is_finished] for v, found in final_runs(made).items()}
    return {**collect(made, {v: found for v, found in runs.items() if found}, costs, {}), **more}


def cells(text: str, title: str) -> list[str]:
    (row,) = (
        line for line in text.split("| evidence")[0].split("| costs")[0].splitlines() if line.startswith(f"| {title} ")
    )
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_tables_say_what_the_runs_say(plan: Make) -> None:
    text = as_markdown(results(swept(plan)))
    # Differences of 10 and 12 points: mean 11, standard error 1, t(1) = 12.7062 at 97.5 %.
    assert cells(text, "EWA") == [
        "EWA",
        "0.01",
        "61.0 ± 1.4",
        "54.9 ± 1.3",  # best by validation: 0.9 of them, see compare_folder
        "48.8 ± 1.1",  # with experts
        "30.0 ± 0.0",
        "no difference beyond noise: +11.0 points (-1.7 to +23.7)",
        "+9.9 (-1.5 to +21.3)",
    ]
    assert cells(text, "dense")[6:] == ["", ""]
    assert re.search(r"\| EWA +\| 1,200 +\| 1,000 +\| 2.5 M +\| 20.0 ms +\| 1.10 +\| 1.00 ms +\| 100 MiB +\|", text)
    assert "At the edge of the sweep, with the highest train.lr: all. A higher one may be better still." in text
    assert "12 test samples: a single accuracy has a standard error of 14.4%." in text
    assert "seeds 0, 1" in text
    assert "comparisons" not in text  # there is one


def test_more_than_one_comparison_is_told(plan: Make) -> None:
    rup = {"title": "RUP", "changes": ["ewa.share_rate=0"]}
    variants = {"dense": {"title": "dense", "changes": ["ewa=null"]}, "ewa": {"title": "EWA"}, "rup": rup}
    made = plan("sweep=null", variants=variants)
    for variant in variants:
        finish(made, made.run(variant, None, 0))
    text = as_markdown(results(made))
    assert "| evidence" not in text  # one seed shows nothing
    assert "EWA: only 1 of 2 seeds are finished." in text
    assert "one seed: +0.0 points, no interval" in text
    assert " lr " not in text


def test_results_hold_scores_differences_and_no_path(plan: Make, tmp_path: Path) -> None:
    made = swept(plan)
    error = f"OSError: cannot open {tmp_path}/data/x.h5, see /opt/other/place.txt"
    broken = {Path("ewa/lr_1/seed_0"): Broken("ewa/lr_1/seed_0", error)}
    found = collect(made, final_runs(made), None, broken)
    ewa = found["variants"]["ewa"]
    assert ewa["value"] == 0.01
    assert ewa["sweep"] == {"0.001": {"0": 0.1}, "0.01": {"0": 0.3}}
    assert ewa["scores"]["merged"] == {"0": 0.6, "1": 0.62}
    for state, part in STATES.items():
        assert ewa["scores"][state] == {"0": part * 0.6, "1": part * 0.62}
    assert ewa["scores"]["val"] == {"0": 0.3, "1": 0.3}
    assert ewa["difference"]["merged"]["mean"] == pytest.approx(0.11)
    assert "difference" not in found["variants"]["dense"]
    assert found["broken"] == [{"run": "ewa/lr_1/seed_0", "error": "OSError: cannot open data/x.h5, see .../place.txt"}]
    assert str(tmp_path.parent) not in json.dumps(found)
    assert without_paths("train.lr=1/2, configs/a/b.yaml") == "train.lr=1/2, configs/a/b.yaml"
    assert without_paths(["data.path=/home/me/x.h5"]) == ["data.path=.../x.h5"]


def test_everything_is_written_and_copied_for_the_docs(plan: Make, capsys: pytest.CaptureFixture[str]) -> None:
    made = swept(plan)
    report(made, Options(costs=False, save=Path("docs/results")), {})
    saved = read_results(Path("docs/results/toys.json"))
    assert saved == json.loads((made.output / "results.json").read_text())
    assert Path("docs/results/toys.png").read_bytes() == (made.output / "curves.png").read_bytes()
    assert as_markdown(saved) in capsys.readouterr().out
    with (made.output / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"variant": "ewa", "value": "0.01", "state": "merged", "seed": "1", "accuracy": "0.62"} in rows


def test_results_of_another_tool_need_scores_alone() -> None:
    text = as_markdown(MINIMAL)
    assert cells(text, "EWA") == ["EWA", "61.0 ± 1.4", "no difference beyond noise: +11.0 points (-1.7 to +23.7)"]
    assert "| costs" not in text
    assert as_csv(MINIMAL).splitlines()[1] == "dense,,merged,0,0.5"
    summary = as_summary([MINIMAL, {**MINIMAL, "title": "Other", "highlight": "none"}])
    assert "| Digits" in summary
    assert "**no difference beyond noise: +11.0 points (-1.7 to +23.7)**" in summary
    assert "Other" not in summary


def test_an_ablation_is_not_in_the_summary(plan: Make) -> None:
    made = plan("sweep=null", "summary=false")
    for variant in made.variants:
        finish(made, made.run(variant, None, 0))
    summary = as_summary([MINIMAL, results(made)])
    assert "Digits" in summary
    assert "Toys" not in summary
    assert "Toys" in as_summary([{**results(made), "summary": True}])


def test_the_date_is_that_of_the_latest_run(plan: Make) -> None:
    made = plan("sweep=null")
    for day, run in enumerate(made.final_runs("ewa", None), start=3):
        finish(made, run)
        noon = datetime.datetime(2020, 5, day, 12).timestamp()
        os.utime(run.folder / "summary.json", (noon, noon))
    assert results(made)["date"] == "2020-05-04"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "holds no results"),
        ("[]", "holds no results"),
        ('{"title": "x", "variants": {}}', "lacks main_metric, higher_is_better, baseline"),
        (json.dumps({**MINIMAL, "variants": {"a": {"title": "a"}}}), "lacks variants.a.scores"),
    ],
)
def test_damaged_results_are_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ConfigError) as stop:
        read_results(tmp_path / "x.json")
    assert message in str(stop.value)


def test_results_of_an_earlier_version_are_read_by_todays_keys(tmp_path: Path) -> None:
    earlier = {key: value for key, value in MINIMAL.items() if key != "main_metric"}
    earlier |= {"headline": "accuracy", "test_shapes": 12, "val_shapes": 3}
    (tmp_path / "x.json").write_text(json.dumps(earlier))
    assert read_results(tmp_path / "x.json") == {**MINIMAL, "test_samples": 12, "val_samples": 3}


def test_a_new_metric_is_shown_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    class Move(Classify):
        main_metric = Metric("emd", "mover's distance", higher_is_better=False, percent=False)

    monkeypatch.setitem(OBJECTIVES, "move", Move)
    results = {**MINIMAL, "main_metric": "emd", "higher_is_better": False, "standard_error": 0.0125, "test_samples": 7}
    text = as_markdown(results)
    assert text.startswith("| mover's distance ")
    assert cells(text, "EWA")[1:] == [
        "0.610000 ± 0.014142",
        "no difference beyond noise: -0.110000 (-0.237062 to +0.017062)",
    ]
    assert "Lower is better here" in text
    assert "7 test samples: a single mover's distance has a standard error of 0.0125." in text


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "config.yaml", "merged_last", "accuracy", "miou"])
def test_names_of_a_runs_files_and_of_metrics_are_left_to_their_owners(name: str) -> None:
    files = sorted(Path(report_module.__file__).parent.glob("*.py"))
    assert [file.name for file in files if name in file.read_text()] == []
