"""The summary of a finished run as text: a table, remarks, and next commands."""

import inspect
import shlex
from collections.abc import Sequence
from typing import Any

from pc_ewa import package
from pc_ewa.config import Data
from pc_ewa.eval.accuracy import uncertainty
from pc_ewa.models import MODELS
from pc_ewa.models.next_step import NextStep
from pc_ewa.train.objectives import metric_of
from pc_ewa.train.run_folder import RunFolder
from pc_ewa.yaml_config import read_yaml


def describe_summary(summary: dict[str, Any]) -> str:
    """Write score, size and time before and after merging as a table, with the next commands."""
    title = f"test {metric_of(summary['main_metric']).title}"
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
            *([f"peak memory: {summary['peak_memory'] / 2**20:,.0f} MiB"] if summary.get("peak_memory") else []),
            f"run folder: {summary['output']}",
            "",
            "next:",
            *(f"  {command}" for command in next_commands(summary)),
        ]
    )


def _titles(summary: dict[str, Any]) -> tuple[str, str]:
    """Name the two columns."""
    if summary.get("gated"):
        return "as trained", "kept as MoE"
    return ("with experts", "merged") if summary["mixtures"] else ("as trained", "dense")


def _cells(summary: dict[str, Any], which: str) -> list[str]:
    """Write the main metric before and after merging, with its counts for an accuracy."""
    metric = metric_of(summary["main_metric"])
    cells = []
    for kind in (f"unmerged{which}", f"merged{which}"):
        value, correct = summary[f"test_{metric.key}_{kind}"], summary.get(f"test_correct_{kind}")
        counts = "" if correct is None else f" ({correct}/{summary['test_samples']})"
        cells.append(metric.format(value) + counts)
    return cells


def _remarks(summary: dict[str, Any]) -> list[str]:
    metric, lines = metric_of(summary["main_metric"]), []
    if summary.get("average"):
        lines.append(f"scores are those of the averaged weights ({summary['average']}), once there are any")
    error, correct = (summary.get(f"test_{name}_merged") for name in ("standard_error", "correct"))
    if error is not None:
        samples = summary["test_samples"]
        doubt = f"standard error {error:.2%}" if correct is None else uncertainty(correct, samples)
        lines.append(f"test {metric.title} on {samples} samples: {doubt}")
    if "test_svm_accuracy_merged" in summary:
        lines.append(f"linear SVM on the features, test samples: {summary['test_svm_accuracy_merged']:.1%}")
    if summary["val_samples"] == 0:
        return [*lines, "no validation split (data.val_fraction=0): the last step counts"]
    source = "cut from train" if summary["val_is_cut_from_train"] else "of the dataset's own split"
    last, best = (metric.format(summary[f"val_{metric.key}{which}"]) for which in ("", "_best"))
    lines.append(f"validation {metric.title}: {last} last, {best} best ({summary['val_samples']} samples {source})")
    return lines


def next_commands(summary: dict[str, Any]) -> list[str]:
    """Return the next commands, each with its reason."""
    seed = summary["seed"] + 1
    again = f"{package.command()} train {shlex.quote(str(RunFolder(summary['output']).config_path))}"
    rival = ("ewa=null", "dense", "without EWA") if summary["mixtures"] else ("ewa.num_experts=4", "ewa", "with EWA")
    if summary.get("gated"):
        rival = ("ewa=null", "dense", "without experts")
    model_class = MODELS[summary["model"]]
    evaluate = f"{package.command()} evaluate {_merged(summary)}"
    commands = {}
    starts_another = hasattr(model_class, "next_step")
    if not starts_another:
        commands[evaluate] = f"{metric_of(summary['main_metric']).title} in detail"
    elif hasattr(model_class, "features"):
        commands[f"{evaluate} --protocol svm"] = "a linear SVM on the features"
    if starts_another and not summary.get("gated"):  # nothing starts from gated mixtures
        commands[_next_training(summary, model_class.next_step)] = model_class.next_step.why
    if summary["ffns_merged"]:
        commands[f"{again} {rival[0]} {_output(summary, rival[1])}"] = f"the same run {rival[2]}"
    commands[f"{again} seed={seed} {_output(summary, f'seed{seed}')}"] = "another seed"
    width = min(max(map(len, commands)), 100)
    return [f"{command:<{width}}   # {why}" for command, why in commands.items()]


def _output(summary: dict[str, Any], suffix: str) -> str:
    """Name the run folder of another run beside this one, quoted for a shell."""
    return shlex.quote(f"output={summary['output']}_{suffix}")


def _next_training(summary: dict[str, Any], step: NextStep) -> str:
    """Return the command that trains the next model from the weights of a run, with the same sizes and data root."""
    config = RunFolder(summary["output"]).config()
    name, chosen = step.configs[-1], read_yaml(step.configs[-1])
    for other in step.configs[:-1]:
        content = read_yaml(other)
        if content["data"]["name"] == config["data"]["name"]:
            name, chosen = other, content
    flag = "tokenizer=" if getattr(MODELS[step.model], "needs_tokenizer", False) else "--from "
    changes = [] if chosen["model"]["name"] == step.model else [f"model.name={step.model}"]
    parameters = inspect.signature(MODELS[step.model]).parameters
    shared = {key: value for key, value in config["model"].items() if key in parameters and key != "drop_path"}
    changes += [f"model.{key}={value}" for key, value in shared.items() if value != parameters[key].default]
    root = config["data"]["root"]
    if root != Data.model_fields["root"].default:
        sections = ["data", *(["probe.data"] if chosen.get("probe") else [])]
        changes += [f"{section}.root={shlex.quote(root)}" for section in sections]
    changes.append(_output(summary, step.model))
    return f"{package.command()} train {name} {flag}{_merged(summary)} {' '.join(changes)}"


def _merged(summary: dict[str, Any]) -> str:
    return shlex.quote(str(RunFolder(summary["output"]).merged("last")))


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for title, *cells in rows:
        padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("   ".join([f"{title:<{widths[0]}}", *padded]))
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
