"""The parts of `pc-ewa benchmark reliability`: kills, flipped bits, hostile and damaged files, a soak."""

import datetime
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import torch

from pc_ewa.benchmark.damage import MOST_MEMORY, MOST_SECONDS, flips, fuzz, hostile
from pc_ewa.benchmark.disturbed import Toy, kill, soak
from pc_ewa.benchmark.report import Table, as_markdown, hardware, number
from pc_ewa.errors import DataError
from pc_ewa.files import write_text

PAGE = Path(__file__).with_name("reliability.md")  # the template of the page
PARTS = ("kill", "flips", "hostile", "fuzz", "soak")
Measured = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """The sizes of all parts.

    Attributes:
        kills: number of runs to kill.
        flips: number of bits to flip in each file.
        cases: number of damaged shapes to read.
        minutes: duration of the soak.
        seed: of all random choices.
        hostile: names of hostile files. None takes all.
        steps: optimizer steps of a toy run.
    """

    kills: int = 60
    flips: int = 200
    cases: int = 20_000
    minutes: float = 15
    seed: int = 0
    hostile: tuple[str, ...] | None = None
    steps: int = 12

    def options(self, part: str) -> str:
        """Return the options of the command line that repeat a part."""
        sizes = {
            "kill": f" --kills {self.kills} --seed {self.seed}",
            "flips": f" --flips {self.flips} --seed {self.seed}",
            "fuzz": f" --cases {self.cases} --seed {self.seed}",
            "soak": f" --minutes {self.minutes:g}",
        }
        return f"--only {part}{sizes.get(part, '')}"


def measure(parts: tuple[str, ...], plan: Plan, done: Callable[[str, Measured], None]) -> None:
    """Measure the parts. `done` is called with the name and the result of each when it ends."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        toy = Toy(Path(folder), plan.steps)
        measures: dict[str, Callable[[], Measured]] = {
            "kill": lambda: kill(toy, plan.kills, plan.seed),
            "flips": lambda: flips(toy, plan.flips, plan.seed),
            "hostile": lambda: hostile(toy, plan.hostile),
            "fuzz": lambda: fuzz(toy, plan.cases, plan.seed),
            "soak": lambda: soak(toy, plan.minutes),
        }
        for part in parts:
            begin = time.perf_counter()
            result = measures[part]()
            done(
                part,
                {
                    "command": f"pc-ewa benchmark reliability {plan.options(part)}",
                    "date": datetime.date.today().isoformat(),
                    "hardware": hardware(torch.device("cpu")),
                    "seconds": round(time.perf_counter() - begin, 1),
                    "result": result,
                },
            )


def verdict(part: str, result: Measured) -> str:
    """Return the verdict on a part, in one line."""
    return _VERDICTS[part](result)


def save(page: Path, part: str, measured: Measured) -> None:
    """Replace a part in PAGE.json beside the page, and write the page from that file.

    Raises:
        DataError: a PAGE.json that this command did not write.
    """
    place = page.with_suffix(".json")
    figures = read(place) if place.exists() else {}
    figures[part] = measured
    write_text(place, json.dumps({name: figures[name] for name in PARTS if name in figures}, indent=1) + "\n")
    write_text(page, as_page(figures))


def read(place: Path) -> dict[str, Measured]:
    """Read and check a file written by `save`."""
    try:
        # Formatting the page accesses every key, so that a wrong file fails here.
        figures: dict[str, Measured] = json.loads(place.read_text(encoding="utf-8"))
        as_page({part: figures[part] for part in figures.keys()})  # noqa: SIM118  (a list has none)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{place} does not hold figures of this command; move it away, or choose another page"
        ) from None
    return figures


def as_page(figures: dict[str, Measured]) -> str:
    """Return the page: the template with the results of each part, or with "Not measured."."""
    filled = {part: _section(part, figures[part]) if part in figures else "Not measured." for part in PARTS}
    return Template(PAGE.read_text(encoding="utf-8")).substitute(filled, seconds=MOST_SECONDS, memory=MOST_MEMORY)


def _section(part: str, measured: Measured) -> str:
    about = f"{measured['date']}; {measured['hardware']}; {number(measured['seconds'])} s"
    text = [f"```bash\n{measured['command']}\n```", f"**{verdict(part, measured['result'])}.** {about}."]
    if part in _DETAILS:
        text.append(_DETAILS[part](measured["result"]))
    return "\n\n".join(text)


def _kill_verdict(result: Measured) -> str:
    twice = f"{result['killed_twice']} of them killed twice"
    drawn = f"{result['at_random']} at random, {result['aimed']} aimed, {twice}"
    return f"{result['identical']} of {result['trials']} killed runs ended as the undisturbed one ({drawn})"


def _kill_details(result: Measured) -> str:
    counted = f"Runs that had ended before the kill, not counted: {result['not_counted']}. "
    compared = f"Compared for each: {result['compared']} tensors, numbers and lists of files."
    return "\n".join([counted + compared, *(f"- {line}" for line in result["differing"])])


def _flips_verdict(result: Measured) -> str:
    return "; ".join(
        f"{kind}: {one['noticed']} of {one['trials']} noticed, {one['harmless']} harmless, {one['missed']} missed"
        for kind, one in result.items()
    )


def _hostile_verdict(result: Measured) -> str:
    held = sum(not one["problems"] for one in result.values())
    within = f"in one line, within {MOST_SECONDS} s and {MOST_MEMORY} MB"
    return f"{held} of {len(result)} hostile files refused {within}"


def _hostile_details(result: Measured) -> str:
    rows = [
        [
            name,
            "none" if one["seconds"] is None else f"{one['seconds']:.2f} s",
            "none" if one["memory"] is None else f"{max(0, one['memory']):.0f} MB",
            "; ".join(one["problems"]) or "held",
        ]
        for name, one in result.items()
    ]
    return as_markdown(Table("Hostile files", ["file", "processor time", "memory", ""], rows))


def _fuzz_verdict(result: Measured) -> str:
    refused = sum(kind["refused"] for kind in result["kinds"].values())
    sound = sum(kind["sound"] for kind in result["kinds"].values())
    failed = result["trials"] - refused - sound
    return f"{result['trials']} damaged files: {refused} refused, {sound} read as sound shapes, {failed} failures"


def _fuzz_details(result: Measured) -> str:
    rows = [[kind, *(str(one[key]) for key in ("cases", "refused", "sound"))] for kind, one in result["kinds"].items()]
    table = as_markdown(Table("Kinds of files", ["kind", "cases", "refused", "sound"], rows))
    return "\n\n".join([table, *(f"- {failure[:200]}" for failure in result["failures"])])


def _soak_verdict(result: Measured) -> str:
    memory, files, threads = (result[key] for key in ("memory", "files", "threads"))
    grown = (memory["last"] - memory["first"]) / 1e6
    held = grown <= 0.02 * memory["first"] / 1e6 and files["last"] == files["first"]
    flat = held and threads["last"] == threads["first"] and result["exit_code"] == 143
    grew = f"memory {memory['first'] / 1e6:.0f} MB and {grown:+.1f} MB at the end (at most {memory['most'] / 1e6:.0f})"
    counts = (
        f"{files['first']:g} and {files['last']:g} open files, {threads['first']:g} and {threads['last']:g} threads"
    )
    over = f"{'Flat' if flat else 'NOT flat'} over {result['minutes']:g} minutes, {result['steps']} steps"
    return f"{over}: {grew}, {counts}"


_VERDICTS: dict[str, Callable[[Measured], str]] = {
    "kill": _kill_verdict,
    "flips": _flips_verdict,
    "hostile": _hostile_verdict,
    "fuzz": _fuzz_verdict,
    "soak": _soak_verdict,
}
_DETAILS: dict[str, Callable[[Measured], str]] = {
    "kill": _kill_details,
    "hostile": _hostile_details,
    "fuzz": _fuzz_details,
}
