"""What a finished run says about itself."""

import os
import sys
from pathlib import Path
from typing import Any


def describe_summary(summary: dict[str, Any]) -> str:
    """Tables of accuracy, size and time before and after merging, and the commands worth trying next."""
    shapes = summary["test_shapes"]

    def accuracy(kind: str) -> str:
        return f"{summary[f'test_accuracy_{kind}']:.1%} ({summary[f'test_correct_{kind}']}/{shapes})"

    before, after = ("with experts", "merged") if summary["mixtures"] else ("as trained", "dense")
    rows = [
        ("", before, after),
        ("test accuracy, last step", accuracy("unmerged"), accuracy("merged")),
        (f"test accuracy, best by validation (step {summary['best_step']})",)
        + (accuracy("unmerged_best"), accuracy("merged_best")),
        ("parameters", f"{summary['params_training']:,}", f"{summary['params_merged']:,}"),
        ("FFNs", str(summary["ffns_training"]), str(summary["ffns_merged"])),
    ]
    seconds = ", ".join(f"{stage} {value:.1f} s" for stage, value in summary["seconds"].items())
    source = "cut from train" if summary["val_is_cut_from_train"] else "of the dataset"
    lines = [
        *_table(rows),
        "",
        f"validation accuracy {summary['val_accuracy']:.1%} last, {summary['val_accuracy_best']:.1%} best "
        f"({summary['val_shapes']} shapes {source}); "
        f"a test accuracy on {shapes} shapes has a standard error of {summary['test_standard_error']:.1%}",
        f"time: {seconds}",
        f"run folder: {summary['output']}",
        "",
        "next:",
        *(f"  {command}" for command in next_commands(summary)),
    ]
    return "\n".join(lines)


def next_commands(summary: dict[str, Any]) -> list[str]:
    """Three commands that work from here, as this machine would type them."""
    python, output = _python(), summary["output"]
    config = f"{output}/config.yaml"
    rival = "ewa=null" if summary["mixtures"] else "ewa.num_experts=4"
    twin = f"{output}_{'dense' if summary['mixtures'] else 'ewa'}"
    return [
        f"{python} tools/evaluate.py {output}/checkpoints/merged_last.pt   # accuracy of every class",
        f"bash tools/run_train.sh {config} {rival} output={twin}   # the same run {'without' if summary['mixtures'] else 'with'} EWA",
        f"bash tools/run_train.sh {config} seed={summary['seed'] + 1} output={output}_seed{summary['seed'] + 1}   # another seed",
    ]


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        f"{row[0]:<{widths[0]}}" + "".join(f"   {cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _python() -> str:
    """The interpreter as one would type it here; a bare `python` may be another one."""
    path = Path(sys.executable)
    relative = Path(os.path.relpath(path, Path.cwd()))
    if os.environ.get("VIRTUAL_ENV") and path.is_relative_to(os.environ["VIRTUAL_ENV"]):
        return "python"
    return str(path) if str(relative).startswith("..") else str(relative)
