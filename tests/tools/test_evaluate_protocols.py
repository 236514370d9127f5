"""`pc-ewa evaluate`: every protocol on every kind of model, and that the JSON holds what was printed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pc_ewa.eval import EvalSettings
from pc_ewa.models.checkpoints.read import read_content
from pc_ewa.train import restored as restore

Tool = Callable[..., Any]
Finished = Callable[[str], dict[str, Any]]


@pytest.fixture
def checkpoint(finished: Finished, tmp_path: Path) -> Callable[..., Path]:
    """Copy a checkpoint of a finished run to a folder of its own: `checkpoint("pretrain", "last.pt")`."""

    def copy(kind: str, name: str = "merged_last.pt") -> Path:
        path = tmp_path / name
        path.write_bytes((Path(finished(kind)["output"]) / "checkpoints" / name).read_bytes())
        return path

    return copy


def evaluate(tool: Tool, *arguments: object) -> tuple[str, dict[str, Any], Path]:
    """What it printed, and what it wrote where."""
    code, out, err = tool("evaluate", *arguments)
    assert (code, err) == (0, "")
    table, _, place = out.rstrip("\n").rpartition("\n\nwritten to ")
    return table, json.loads(Path(place).read_text()), Path(place)


def assert_refused(result: Any, *parts: str) -> None:
    code, out, err = result
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    for part in parts:
        assert part in err


def assert_accuracy_printed(table: str, content: dict[str, Any]) -> None:
    """The lines of the table from the confusion matrix alone."""
    confusion, names = torch.tensor(content["confusion"]), content["class_names"]
    right, samples = int(confusion.trace()), int(confusion.sum())
    assert (content["correct"], content["samples"]) == (right, samples)
    assert content["accuracy"] == right / samples
    error = (right / samples * (1 - right / samples) / samples) ** 0.5
    assert content["standard_error"] == pytest.approx(error)
    recall = confusion.diagonal() / confusion.sum(1)
    assert content["mean_class_accuracy"] == pytest.approx(recall.mean().item())
    assert f"overall accuracy     {right / samples:.2%} ({right}/{samples}, standard error {error:.2%})\n" in table
    assert f"mean class accuracy  {recall.mean():.2%}\n" in table
    for label, name in enumerate(names):
        correct, total = int(confusion[label, label]), int(confusion[label].sum())
        assert content["per_class"][label] == {"name": name, "samples": total, "correct": correct}
        assert f"  {name:<6}  {correct / total:7.1%} ({correct}/{total})" in table.splitlines()
    for true, predicted in (confusion - confusion.diag().diag()).nonzero().tolist():
        start = f"  {names[true]} -> {names[predicted]}"
        (line,) = (line for line in table.splitlines() if line.startswith(start))
        assert line.split()[-1] == str(int(confusion[true, predicted]))


# What a model is made for.


def test_a_classifier_by_its_accuracy(tool: Tool, checkpoint: Any, finished: Finished, tmp_path: Path) -> None:
    path = checkpoint("classify")
    table, content, place = evaluate(tool, path)
    assert place == tmp_path / "merged_last.score.test.json"
    assert table.startswith(f"{path} on test of hdf5\noverall accuracy")
    assert (content["checkpoint"], content["protocol"], content["split"]) == (str(path), "score", "test")
    assert content["correct"] == finished("classify")["test_correct_merged"]
    assert content["class_names"] == ["sphere", "cube", "torus"]
    assert content["votes"] == 1
    assert "voted" not in table
    assert_accuracy_printed(table, content)


def test_a_segmenter_by_the_iou_of_parts(tool: Tool, checkpoint: Any, finished: Finished) -> None:
    table, content, place = evaluate(tool, checkpoint("segment", "last.pt"), "--split", "val")
    assert place.name == "last.score.val.json"
    assert content["samples"] == 3
    assert content["instance_miou"] == finished("segment")["val_instance_miou"]
    means = [part["miou"] for part in content["per_class"].values()]
    assert content["class_miou"] == pytest.approx(sum(means) / 3)
    assert content["accuracy"] == content["points_right"] / content["points"]
    assert content["points"] == 3 * 48
    error = f"3 samples, standard error {content['standard_error']:.2%}"
    assert table.splitlines()[1:] == [
        f"instance mIoU      {content['instance_miou']:.2%} ({error})",
        f"class mIoU         {content['class_miou']:.2%} (3 categories)",
        f"accuracy of points {content['accuracy']:.2%} ({content['points_right']}/144)",
        *(f"  {n:<6}  {content['per_class'][n]['miou']:7.1%} (1 samples)" for n in ("sphere", "cube", "torus")),
    ]


@pytest.mark.parametrize("kind", ["pretrain", "tokenize", "point_bert"])
def test_a_self_supervised_model_by_its_loss(
    kind: str, tool: Tool, checkpoint: Any, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("merged_last.pt", "last.pt"):  # with its experts in place, as it would be merged
        table, content, _ = evaluate(tool, checkpoint(kind, name))
        assert content["loss"] == pytest.approx(finished(kind)["test_loss_merged"], rel=1e-5)
        assert content["samples"] == 12
        terms = [n for n in content if n not in ("checkpoint", "protocol", "split", "samples")]
        assert table.splitlines()[1:] == [f"{term:<16} {content[term]:.6g}" for term in terms]


# Where the JSON goes.


def test_json_goes_where_it_is_told(tool: Tool, checkpoint: Any, tmp_path: Path) -> None:
    path = checkpoint("classify")
    _, content, place = evaluate(tool, path, "--json", tmp_path / "new" / "deep" / "result.json")
    assert place == tmp_path / "new" / "deep" / "result.json"
    _, same, _ = evaluate(tool, "--json", place, path)  # and replaces what is there
    assert same == content
    assert sorted(os.listdir(tmp_path)) == ["merged_last.pt", "new"]


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(
    tool: Tool, checkpoint: Any, tmp_path: Path
) -> None:
    path = checkpoint("classify")
    for place in (tmp_path, path / "result.json", Path("/dev/null/result.json")):
        line = f"{place} cannot be written; choose another place for it"
        assert_refused(tool("evaluate", path, "--json", place), line)
        assert_refused(tool("evaluate", path, "--protocol=fewshot", "--config=x.yaml", "--json", place), line)
    (tmp_path / "merged_last.score.test.json").mkdir()
    assert_refused(tool("evaluate", path), "merged_last.score.test.json cannot be written; choose another place")


# Votes.


def test_votes_are_labelled_and_a_single_one_is_plain(tool: Tool, checkpoint: Any) -> None:
    path = checkpoint("classify")
    plain, expected, _ = evaluate(tool, path)
    table, content, place = evaluate(tool, path, "--votes", "3")
    assert place.name == "merged_last.score_voted3.test.json"
    assert table.splitlines()[1] == "voted: mean of the logits over 3 draws of each cloud"
    assert content["votes"] == 3
    assert_accuracy_printed(table, content)
    assert evaluate(tool, path, "--votes", "3")[1] == content
    one, same, place = evaluate(tool, path, "--votes", "1")
    assert (one, same) == (plain, expected)
    assert place.name == "merged_last.score.test.json"


def test_votes_are_for_classifiers(tool: Tool, checkpoint: Any, kinds: dict[str, Path], tmp_path: Path) -> None:
    for kind, name in (("segment", "point_mae_segmenter"), ("pretrain", "point_mae")):
        assert_refused(tool("evaluate", checkpoint(kind), "--votes=3"), f"votes=3 with {name}; only classifiers vote")
    path = checkpoint("classify")
    assert_refused(
        tool("evaluate", path, "--votes=3", "--protocol=svm"), "--votes is for --protocol score, not for svm"
    )
    assert_refused(tool("evaluate", path, "--votes=0"), "--votes 0; give 1 (one forward pass for each cloud) or more")
    fewshot = ("--votes=3", "--protocol=fewshot", "--config", kinds["classify"])
    assert_refused(tool("evaluate", path, *fewshot), "--votes is for --protocol score, not for fewshot")
    assert os.listdir(tmp_path) == ["merged_last.pt"]


# A linear SVM on frozen features.


@pytest.mark.parametrize("name", ["merged_last.pt", "last.pt"])
@pytest.mark.parametrize("kind", ["pretrain", "point_bert"])
def test_svm_of_pretraining_is_that_of_its_summary(
    kind: str, name: str, tool: Tool, checkpoint: Any, finished: Finished
) -> None:
    """With its experts in place a checkpoint gives the features that it would give merged."""
    table, content, place = evaluate(tool, checkpoint(kind, name), "--protocol", "svm")
    assert place.name == f"{Path(name).stem}.svm.test.json"
    assert content["protocol"] == "svm"
    assert content["accuracy"] == finished(kind)["test_svm_accuracy_merged"]
    assert content["c"] == finished(kind)["test_svm_c_merged"]
    assert table.splitlines()[1].startswith(f"linear SVM (one against one) on {content['feature_dim']} standardised")
    assert f"\nC {content['c']:g}, " in table
    assert_accuracy_printed(table, content)


def test_svm_of_a_classifier_may_be_on_other_classes(tool: Tool, checkpoint: Any, tmp_path: Path) -> None:
    """Its head is not used."""
    from pc_ewa.data import write_hdf5

    points = torch.rand(16, 64, 3, generator=torch.Generator().manual_seed(0)).numpy()
    names, split = ["low   ", "high  "], [0] * 8 + [1] * 8
    points[1::2, :, 1] *= 0.1
    write_hdf5(tmp_path / "other.h5", points, [0, 1] * 8, names, up_axis="y", split=split)
    table, content, _ = evaluate(
        tool, checkpoint("classify"), "--protocol=svm", f"data.path={tmp_path}/other.h5", "data.val_fraction=0"
    )
    assert content["class_names"] == names
    assert content["samples"] == 8
    assert_accuracy_printed(table, content)


def test_svm_of_untrained_weights_needs_a_config_and_no_pretraining_data(
    tool: Tool, kinds: dict[str, Path], tmp_path: Path
) -> None:
    config = ("--config", kinds["pretrain"], f"output={tmp_path}/run", "data.path=none.h5")
    assert_refused(tool("evaluate", "random", "--protocol=svm"), '"random" needs --config CONFIG')
    table, content, place = evaluate(tool, "random", "--protocol=svm", *config)
    assert place == tmp_path / "run" / "random.svm.test.json"
    assert_accuracy_printed(table, content)
    assert evaluate(tool, "random", "--protocol=svm", *config)[0] == table


def test_svm_of_an_official_pretraining_file_needs_no_pretraining_data(
    tool: Tool, checkpoint: Any, finished: Finished, kinds: dict[str, Path], tmp_path: Path
) -> None:
    weights = read_content(checkpoint("pretrain"))["base_model"]
    official = tmp_path / "pretrain.pth"
    torch.save({"base_model": {f"module.{key}": value for key, value in weights.items()}, "epoch": 300}, official)
    _, content, _ = evaluate(
        tool,
        official,
        "--protocol=svm",
        "--config",
        kinds["pretrain"],
        f"data={{name: hdf5, path: {tmp_path}/none.h5}}",
    )
    assert content["accuracy"] == finished("pretrain")["test_svm_accuracy_merged"]


@pytest.mark.parametrize(("kind", "name"), [("tokenize", "DiscreteVAE"), ("segment", "PointMAESegmenter")])
def test_svm_of_a_model_without_features_is_one_line(kind: str, name: str, tool: Tool, checkpoint: Any) -> None:
    line = f"{name} has no features(points); choose a model that has them"
    assert_refused(tool("evaluate", checkpoint(kind), "--protocol=svm"), line)


def test_every_protocol_computes_in_the_precision_of_the_experiment(
    tool: Tool, checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    for name in ("evaluate_voted", "evaluate_linear_svm"):
        original = getattr(restore, name)

        def noted(*arguments: Any, _own: Any = original, **options: Any) -> Any:
            asked.extend(each.precision for each in arguments if isinstance(each, EvalSettings))
            return _own(*arguments, **options)

        monkeypatch.setattr(restore, name, noted)
    for options in (["--votes=2"], ["--protocol=svm"]):
        evaluate(tool, checkpoint("classify"), *options, "train.precision=bf16")
    assert asked == ["bf16", "bf16"]


# Official files.


def test_the_head_of_a_file_for_more_classes_is_cut_and_that_is_said(
    tool: Tool, checkpoint: Any, kinds: dict[str, Path], finished: Finished, tmp_path: Path
) -> None:
    """As in the released ScanObjectNN files of Point-BERT: 40 outputs, 15 classes."""
    weights = read_content(checkpoint("classify"))["base_model"]
    for ending in ("weight", "bias"):
        key = f"cls_head_finetune.8.{ending}"
        weights[key] = torch.cat([weights[key], 100 + torch.zeros(37, *weights[key].shape[1:])])
    official = tmp_path / "scan.pth"
    torch.save({"base_model": {f"module.{key}": value for key, value in weights.items()}}, official)
    table, content, place = evaluate(tool, official, "--config", kinds["classify"])
    note = "note: the head has 40 outputs, the data 3 classes: the first 3 are used, as in the official"
    assert table.startswith(f"{note} ScanObjectNN files\n{official} on test of hdf5\n")
    assert content["correct"] == finished("classify")["test_correct_merged"]
    assert place == tmp_path / "scan.score.test.json"
    assert_accuracy_printed(table, content)
    # Fewer outputs than classes cannot be mended.
    for ending in ("weight", "bias"):
        weights[f"cls_head_finetune.8.{ending}"] = weights[f"cls_head_finetune.8.{ending}"][:2]
    torch.save({"base_model": weights}, official)
    assert_refused(tool("evaluate", official, "--config", kinds["classify"]), "does not fit point_mae_classifier")


# Few-shot: what is refused before anything is trained; the rest is in tests/train/test_fewshot.py.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol=fewshot"], "--protocol fewshot needs --config, such as finetune/fewshot"),
        (["--protocol=fewshot", "--config=CONFIG"], "data.name=hdf5; few-shot needs modelnet_fewshot, as in configs/"),
        (
            ["--protocol=fewshot", "--config=CONFIG", "--split=val"],
            "--split val; --protocol fewshot measures every fold",
        ),
        (["--protocol=fewshot", "--config=CONFIG", "--setting=5x11"], "choose from 5x10, 5x20, 10x10, 10x20"),
        (["--protocol=fewshot", "--config=CONFIG", "--setting=5"], "--setting 5; choose from 5x10"),
        (["--protocol=fewshot", "--config=CONFIG", "--folds=0"], "--folds 0; give 1 to 10"),
        (["--protocol=fewshot", "--config=CONFIG", "--folds=11"], "--folds 11; give 1 to 10"),
        (["--folds=2"], "--folds and --setting are for --protocol fewshot"),
        (["--setting=5x10"], "--folds and --setting are for --protocol fewshot"),
    ],
)
def test_wrong_options_of_fewshot_are_one_line(
    options: list[str], message: str, tool: Tool, checkpoint: Any, kinds: dict[str, Path]
) -> None:
    chosen = [option.replace("CONFIG", str(kinds["classify"])) for option in options]
    assert_refused(tool("evaluate", checkpoint("classify"), *chosen), message)


def test_an_unknown_protocol_is_refused_by_the_parser(tool: Tool, checkpoint: Any) -> None:
    code, out, err = tool("evaluate", checkpoint("classify"), "--protocol=knn")
    assert (code, out) == (2, "")
    assert "invalid choice: 'knn'" in err


def test_a_second_evaluation_never_overwrites_the_first(tool: Tool, trained: Any, tmp_path: Path) -> None:
    """Another option, or another checkpoint of the same stem: another file. The same again: the same file."""
    first = tmp_path / "merged.pt"
    for name in ("merged.pt", "merged.pth", "other.pt"):
        shutil.copy(trained.folder / "checkpoints" / "merged_last.pt", tmp_path / name)
    long = "data.root=" + "x" * 150
    commands = [
        (first,),
        (first, "data.num_points=32"),
        (first, "data.num_points=33"),
        (first, "data.num_points=32", "train.precision=bf16"),
        (first, "train.precision=bf16"),
        (first, "--split", "val"),
        (first, "--votes", "2"),
        (first, long),
        (first, long + "y"),
        (tmp_path / "merged.pth",),
        (tmp_path / "other.pt",),
    ]
    for command in commands:
        assert tool("evaluate", *command).code == 0, command
    results = sorted(tmp_path.glob("*.json"))
    assert len(results) == len(commands)
    for command in commands[:2]:
        assert tool("evaluate", *command).code == 0
    assert sorted(tmp_path.glob("*.json")) == results
    contents = [json.loads(path.read_text()) for path in results]
    assert sorted(content.get("overrides", []) for content in contents)[-1] == ["train.precision=bf16"]
    assert all(len(path.name) < 200 for path in results)
