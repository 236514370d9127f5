"""Curves are means over seeds of what the runs logged."""

import csv
import io
import json
from collections.abc import Callable

from compare_folder import finish

from pc_ewa.compare import Plan
from pc_ewa.compare.curves import make_curves
from pc_ewa.compare.sweep import final_runs

Make = Callable[..., Plan]


def test_the_files_hold_mean_and_deviation_over_seeds(plan: Make) -> None:
    made = plan("sweep=null", changes=["train.steps=null", "train.epochs=2"])
    for run in made.final_runs("ewa", None):
        finish(made, run)
        lines = [
            {"step": 2, "ewa/a/spread": 0.1, "ewa/b/spread": 0.3 + 0.2 * run.seed, "share_rate": 0.15, "loss": 1.0},
            {"step": 2, "val_accuracy": 0.4 + 0.2 * run.seed},
            {"step": 4, "val_accuracy": 0.8},
        ]
        (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    dense = made.run("dense", None, 0)
    finish(made, dense)
    (dense.folder / "metrics.jsonl").write_text('{"step": 4, "val_accuracy": 0.5}\n')
    runs = {**final_runs(made), "dense": [dense]}
    found = make_curves(made, runs)
    content = json.loads(found.as_json())
    assert (content["x"], content["main_metric"]) == ("epochs", "accuracy")
    ewa = content["variants"]["ewa"]
    first, second = ewa["val"]
    # 4 steps are 2 epochs; 0.4 and 0.6 have the sample deviation 0.1 * sqrt(2).
    assert {key: round(value, 9) for key, value in first.items()} == {
        "step": 2,
        "x": 1.0,
        "mean": 0.5,
        "std": 0.141421356,
        "seeds": 2,
    }
    assert (second["x"], second["mean"], second["std"]) == (2.0, 0.8, 0.0)
    assert [round(point["mean"], 9) for point in ewa["spread"]] == [0.25]  # of 0.2 and 0.3, means of two mixtures
    assert [point["mean"] for point in ewa["share_rate"]] == [0.15]
    assert content["variants"]["dense"]["spread"] == []
    assert content["variants"]["dense"]["val"] == [{"step": 4, "x": 2.0, "mean": 0.5, "std": 0.0, "seeds": 1}]
    rows = list(csv.DictReader(io.StringIO(found.as_csv())))
    assert {
        "variant": "ewa",
        "curve": "val",
        "step": "4",
        "epochs": "2.0",
        "mean": "0.8",
        "std": "0.0",
        "seeds": "2",
    } in rows
    picture = io.BytesIO()
    found.draw(picture)
    assert picture.getvalue().startswith(b"\x89PNG")


def test_titles_with_dollars_and_a_torn_line_are_no_problem(plan: Make) -> None:
    made = plan("sweep=null", "seeds=[0]", title=r"$\nothing$", variants={"ewa": {"title": r"$\nowhere$ else"}})
    (run,) = made.final_runs("ewa", None)
    finish(made, run)
    (run.folder / "metrics.jsonl").write_text('{"step": 4, "val_accuracy": 0.5}\n{"loss": 1}\n{"step": 4, "val_ac')
    found = make_curves(made, {"ewa": [run]})
    content = json.loads(found.as_json())
    assert [point["mean"] for point in content["variants"]["ewa"]["val"]] == [0.5]
    found.draw(io.BytesIO())


def test_a_config_that_counts_steps_is_drawn_in_steps(plan: Make) -> None:
    made = plan("sweep=null", "seeds=[0]", changes=["train.steps=4"])
    for runs in final_runs(made).values():
        finish(made, runs[0])
        (runs[0].folder / "metrics.jsonl").write_text('{"step": 4, "val_accuracy": 0.5}\n')
    content = json.loads(make_curves(made, final_runs(made)).as_json())
    assert content["x"] == "steps"
    assert content["variants"]["ewa"]["val"][0]["x"] == 4.0
