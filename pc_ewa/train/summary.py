"""What a finished run says about itself."""

import inspect
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pc_ewa.config import Data
from pc_ewa.models import MODELS

TITLES = {"accuracy": "accuracy", "instance_miou": "instance mIoU", "loss": "loss"}


class _Sequel(NamedTuple):
    """What a self-supervised model is trained for: the next model, the command up to the weights, its datasets."""

    model: str
    command: str
    data: tuple[str, ...]
    why: str


# {config} is the quickstart's on its data, else the recipe of the field.
_FINETUNE = "tools/finetune.py {config}"
_TOKENIZED = "tools/pretrain.py {config} tokenizer="
_CONFIGS = {
    "point_mae": ("configs/quickstart_finetune.yaml", "configs/finetune/modelnet40.yaml"),
    "point_bert": ("configs/quickstart_finetune.yaml", "configs/finetune/modelnet40.yaml"),
    "dvae": ("configs/quickstart_point_bert.yaml", "configs/pretrain/point_bert_shapenet55.yaml"),
}
_POINT_BERT = "point_bert_classifier"
_SEQUELS = {
    "point_mae": _Sequel("point_mae_classifier", f"{_FINETUNE} --from ", ("data",), "fine-tuning from here"),
    "point_bert": _Sequel(
        _POINT_BERT, f"{_FINETUNE} model.name={_POINT_BERT} --from ", ("data",), "fine-tuning from here"
    ),
    "dvae": _Sequel("point_bert", _TOKENIZED, ("data", "probe.data"), "pre-training that predicts its tokens"),
}


def describe_summary(summary: dict[str, Any]) -> str:
    """Score, size and time before and after merging, as a table, and the commands worth trying next."""
    title = f"test {TITLES[summary['main_metric']]}"
    rows = [
        ["", *_titles(summary)],
        [f"{title}, last step", *_cells(summary, "")],
    ]
    if summary["best_step"] is not None:
        rows.append([f"{title}, best by validation (step {summary['best_step']})", *_cells(summary, "_best")])
    rows += [
        ["parameters", f"{summary['params_training']:,}", f"{summary['params_merged']:,}"],
        ["FFNs", str(summary["ffns_training"]), str(summary["ffns_merged"])],
    ]
    return "\n".join(
        [
            *_table(rows),
            "",
            *_remarks(summary),
            "time: " + ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in summary["seconds"].items()),
            *([f"peak memory: {summary['peak_memory'] / 2**20:,.0f} MiB"] if "peak_memory" in summary else []),
            f"run folder: {summary['output']}",
            "",
            "next:",
            *(f"  {command}" for command in next_commands(summary)),
        ]
    )


def _titles(summary: dict[str, Any]) -> tuple[str, str]:
    """What the two columns are."""
    if summary.get("gated"):
        return "as trained", "kept as MoE"
    return ("with experts", "merged") if summary["mixtures"] else ("as trained", "dense")


def _cells(summary: dict[str, Any], which: str) -> list[str]:
    """The main_metric before and after merging; for accuracy with the counts it comes from."""
    main_metric = summary["main_metric"]
    cells = []
    for kind in (f"unmerged{which}", f"merged{which}"):
        value = summary[f"test_{main_metric}_{kind}"]
        correct = summary.get(f"test_correct_{kind}") if main_metric == "accuracy" else None
        counts = "" if correct is None else f" ({correct}/{summary['test_samples']})"
        cells.append(_format(main_metric, value) + counts)
    return cells


def _remarks(summary: dict[str, Any]) -> list[str]:
    main_metric, lines = summary["main_metric"], []
    if summary.get("average"):
        lines.append(f"scores are those of the averaged weights ({summary['average']}), once there are any")
    error = summary.get("test_standard_error_merged")
    if error is not None:
        shapes = summary["test_samples"]
        lines.append(f"a test {TITLES[main_metric]} on {shapes} shapes has a standard error of {error:.1%}")
    if "test_svm_accuracy_merged" in summary:
        lines.append(f"linear SVM on the features, test shapes: {summary['test_svm_accuracy_merged']:.1%}")
    if summary["val_samples"] == 0:
        return [*lines, "no validation part (data.val_fraction=0): the last step counts"]
    source = "cut from train" if summary["val_is_cut_from_train"] else "of the dataset's own split"
    last, best = (_format(main_metric, summary[f"val_{main_metric}{which}"]) for which in ("", "_best"))
    lines.append(
        f"validation {TITLES[main_metric]}: {last} last, {best} best ({summary['val_samples']} shapes {source})"
    )
    return lines


def _format(main_metric: str, value: float) -> str:
    return f"{value:.5g}" if main_metric == "loss" else f"{value:.1%}"


def next_commands(summary: dict[str, Any]) -> list[str]:
    """Commands that work from here, as this machine would type them."""
    output, seed = shlex.quote(summary["output"]), summary["seed"] + 1
    again = f"bash tools/run_train.sh {output}/config.yaml"
    rival = ("ewa=null", "dense", "without EWA") if summary["mixtures"] else ("ewa.num_experts=4", "ewa", "with EWA")
    if summary.get("gated"):
        rival = ("ewa=null", "dense", "without experts")
    evaluate = f"{_python()} tools/evaluate.py {output}/checkpoints/merged_last.pt"
    commands = {}
    if summary["main_metric"] == "accuracy":
        commands[evaluate] = "accuracy of every class"
    elif summary["main_metric"] == "instance_miou":
        commands[evaluate] = "mIoU of every class"
    elif hasattr(MODELS[summary["model"]], "features"):
        commands[f"{evaluate} --protocol svm"] = "a linear SVM on the features"
    if summary["model"] in _SEQUELS and not summary.get("gated"):  # nothing starts from gated mixtures
        sequel = _SEQUELS[summary["model"]]
        commands[_sequel_command(summary, sequel)] = sequel.why
    if summary["ffns_merged"]:
        commands[f"{again} {rival[0]} output={output}_{rival[1]}"] = f"the same run {rival[2]}"
    commands[f"{again} seed={seed} output={output}_seed{seed}"] = "another seed"
    width = min(max(map(len, commands)), 100)
    return [f"{command:<{width}}   # {why}" for command, why in commands.items()]


def _sequel_command(summary: dict[str, Any], sequel: _Sequel) -> str:
    """The command that trains the next model from the weights of a run, in its sizes and on datasets in its place."""
    output = summary["output"]
    config = yaml.safe_load((Path(output) / "config.yaml").read_text(encoding="utf-8"))
    quickstart, recipe = _CONFIGS[summary["model"]]
    command = sequel.command.format(config=quickstart if config["data"]["name"] == "sweethome3d" else recipe)
    parameters, root = inspect.signature(MODELS[sequel.model]).parameters, config["data"]["root"]
    shared = {name: value for name, value in config["model"].items() if name in parameters and name != "drop_path"}
    changes = [f"model.{name}={value}" for name, value in shared.items() if value != parameters[name].default]
    if root != Data.model_fields["root"].default:
        changes += [f"{section}.root={shlex.quote(root)}" for section in sequel.data]
    folder = shlex.quote(output)
    changes.append(f"output={folder}_{sequel.model}")
    return f"{_python()} {command}{folder}/checkpoints/merged_last.pt {' '.join(changes)}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for title, *cells in rows:
        padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("   ".join([f"{title:<{widths[0]}}", *padded]))
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _python() -> str:
    """The interpreter as one would type it here; a bare `python` may be another one."""
    path = Path(sys.executable)
    environment = os.environ.get("VIRTUAL_ENV")
    if environment and path.is_relative_to(environment):
        return "python"
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
