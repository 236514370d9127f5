"""The page of `pc-ewa benchmark model`, and its tables of where a step goes and of the memory that it needs."""

import datetime
from collections.abc import Callable, Sequence
from typing import Any

from torch.profiler import profile

from pc_ewa.benchmark.memory import peak_of
from pc_ewa.benchmark.model_steps import OFFICIAL_KEPT, Calls
from pc_ewa.benchmark.report import Table, Target, as_markdown, number
from pc_ewa.heap import give_freed_memory_back

KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "linear"),
    "attention": ("attention",),
    "tail of the patch encoder: products apart": ("NormRelu", "Largest", "Tail"),
    "other norms": ("norm",),
    "GELU": ("gelu",),
    "optimizer": ("adamw", "AdamW"),
    "points: sampling and neighbours": ("pc_ewa::",),
    "copies and casts": ("copy_", "cat", "fill_"),
}


def page(
    title: str, tables: Sequence[Table], targets: Sequence[Target], notes: Sequence[str], command: str, rounds: int
) -> str:
    """Return the results as a page of Markdown."""
    return "\n".join(
        [
            "# How fast the official-size classifier trains and answers",
            "",
            f"Generated on {datetime.date.today().isoformat()} by the command below. Do not edit this page.",
            "",
            f"```bash\n{command}\n```",
            "",
            f"- Hardware: {title}",
            "- *Official style* is the arithmetic of the official Point-MAE code in eager PyTorch, in our words:",
            "  `pc_ewa/benchmark/official_style.py`, with the same weights and the same logits. The grouping is ours,",
            "  as the official one needs CUDA. It runs as PyTorch does by default, and once more with freed memory",
            "  kept, as our trainings keep it (`pc_ewa/heap.py`); the ratio that is left then is the model's own.",
            f"- Medians over {rounds} rounds (3 for what takes more than 2 s), in which all take turns; ratios",
            "  are medians over the rounds too. A step is all of it: drawing, augmenting, forward, backward, clipping,",
            "  AdamW, averaging. The peak is that of a product of matrices of 2,048 rows and columns, which takes",
            "  turns too.",
            *(f"- {note}" for note in notes),
            "",
            *(f"{as_markdown(table)}\n" for table in tables),
            "## What we hold ourselves to",
            "",
            *(f"- {target.describe()}" for target in targets),
            "",
        ]
    )


def profile_table(call: Callable[[], Any], what: str) -> Table:
    """Return a table of the time of a call by kind of operation."""
    call()
    with profile() as recorded:
        call()
    kinds = dict.fromkeys([*KINDS, "all else"], 0.0)
    for row in recorded.key_averages():
        kind = next((kind for kind, words in KINDS.items() if _is_of(row.key, words)), "all else")
        kinds[kind] += row.self_cpu_time_total / 1e3
    total = sum(kinds.values())
    rows = [[kind, number(spent), f"{100 * spent / total:.1f} %"] for kind, spent in kinds.items()]
    return Table(f"Where {what} of ours goes", ["", "ms", "share"], sorted(rows, key=lambda row: -kinds[row[0]]))


def _is_of(key: str, words: tuple[str, ...]) -> bool:
    """Return True if an operator's name is one of `words`, or contains one that is not the name of a matrix product."""
    # Matrix products match by their whole name: "mm" is also a part of "addmm", and "linear" of other operators.
    plain = key.removeprefix("aten::")
    return plain in words or any(word in plain for word in words if word not in KINDS["matrix products"])


def memory_table(steps: Calls) -> Table:
    """Return a table of the peak memory of a training step of each kind."""
    rows = []
    for name, step in steps.items():
        if name == OFFICIAL_KEPT:
            continue
        give_freed_memory_back(at_once_from=2**16)  # so that what is in use is what is counted
        step()  # the state of its optimizer is there now
        rows.append([name, f"{peak_of(step):.0f}"])
    return Table("Peak memory of a training step, beyond weights and optimizer", ["", "MB"], rows)
