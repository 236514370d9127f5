"""What a finished run says about itself."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def describe_summary(summary: dict[str, Any]) -> str:
    """Accuracy, size and time before and after merging, as a table, and the commands worth trying next."""
    shapes = summary["test_shapes"]

    def accuracies(which: str) -> list[str]:
        kinds = (f"unmerged{which}", f"merged{which}")
        return [f"{summary[f'test_accuracy_{k}']:.1%} ({summary[f'test_correct_{k}']}/{shapes})" for k in kinds]

    rows = [
        ["", *(("with experts", "merged") if summary["mixtures"] else ("as trained", "dense"))],
        ["test accuracy, last step", *accuracies("")],
        [f"test accuracy, best by validation (step {summary['best_step']})", *accuracies("_best")],
        ["parameters", f"{summary['params_training']:,}", f"{summary['params_merged']:,}"],
        ["FFNs", str(summary["ffns_training"]), str(summary["ffns_merged"])],
    ]
    source = "cut from train" if summary["val_is_cut_from_train"] else "of the dataset's own split"
    return "\n".join(
        [
            *_table(rows),
            "",
            f"a test accuracy on {shapes} shapes has a standard error of {summary['test_standard_error']:.1%}",
            f"validation accuracy: {summary['val_accuracy']:.1%} last, {summary['val_accuracy_best']:.1%} best "
            f"({summary['val_shapes']} shapes {source})",
            "time: " + ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in summary["seconds"].items()),
            f"run folder: {summary['output']}",
            "",
            "next:",
            *(f"  {command}" for command in next_commands(summary)),
        ]
    )


def next_commands(summary: dict[str, Any]) -> list[str]:
    """Three commands that work from here, as this machine would type them."""
    output, seed = summary["output"], summary["seed"] + 1
    again = f"bash tools/run_train.sh {output}/config.yaml"
    rival = ("ewa=null", "dense", "without") if summary["mixtures"] else ("ewa.num_experts=4", "ewa", "with")
    commands = {
        f"{_python()} tools/evaluate.py {output}/checkpoints/merged_last.pt": "accuracy of every class",
        f"{again} {rival[0]} output={output}_{rival[1]}": f"the same run {rival[2]} EWA",
        f"{again} seed={seed} output={output}_seed{seed}": "another seed",
    }
    width = max(map(len, commands))
    return [f"{command:<{width}}   # {why}" for command, why in commands.items()]


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
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
