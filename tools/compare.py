"""Compare finished runs: mean ± standard deviation over the seeds of each setting, last and best both."""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import yaml

from pc_ewa.errors import CheckpointError, exit_on_error
from pc_ewa.train.report import TITLES

EPILOG = """\
example (the quickstart with three seeds, then without EWA):
  for seed in 0 1 2; do
    bash tools/run_train.sh configs/quickstart.yaml seed=$seed output=runs/ewa_$seed
    bash tools/run_train.sh configs/quickstart.yaml seed=$seed ewa=null output=runs/dense_$seed
  done
  python tools/compare.py runs/ewa_* runs/dense_*

Runs whose configs differ only in seed, output and wandb count as one setting. ± is the sample standard deviation over
seeds; "s.e." is the standard error of a single test accuracy from the number of test shapes alone."""

STATES = {"merged, last": "merged", "merged, best by val": "merged_best", "unmerged, last": "unmerged"}


@exit_on_error
def main(arguments: list[str] | None = None) -> None:
    """Parse, read, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="folders of finished runs")
    options = parser.parse_args(arguments)
    settings: dict[str, list[dict[str, Any]]] = {}
    for folder in map(Path, options.runs):
        setting, summary = read_run(folder)
        settings.setdefault(setting, []).append(summary)
    for runs in settings.values():
        print(describe(runs))


def read_run(folder: Path) -> tuple[str, dict[str, Any]]:
    """Read what a run was (as text, without what may differ between seeds) and what came of it."""
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        raise CheckpointError(f"{folder} is no finished run; it needs config.yaml and summary.json") from None
    return json.dumps(
        {k: v for k, v in config.items() if k not in ("seed", "output", "wandb")}, sort_keys=True
    ), summary


def describe(runs: list[dict[str, Any]]) -> str:
    """One block per setting: a line per figure, over its seeds."""
    seeds = ", ".join(str(run["seed"]) for run in runs)
    headline = runs[0]["headline"]
    lines = [f"{runs[0]['output']} and alike: seeds {seeds}, {runs[0]['mixtures']} mixtures; test {TITLES[headline]}"]
    for title, state in STATES.items():
        values = [run.get(f"test_{headline}_{state}") for run in runs]
        if None not in values:  # a run without a validation part has no best state
            lines.append(f"  {title:<20} {spread(values, headline)}")
    if all("test_standard_error_merged" in run for run in runs):
        error = statistics.mean(run["test_standard_error_merged"] for run in runs)
        lines.append(f"  s.e. of a single run {error:.1%}")
    if headline == "accuracy":
        lost = [run["test_correct_unmerged"] - run["test_correct_merged"] for run in runs]
        lines.append(f"  shapes lost by merging: {', '.join(map(str, lost))}")
    total = [sum(run["seconds"].values()) for run in runs]
    lines.append(f"  seconds, all stages: {', '.join(f'{seconds:.0f}' for seconds in total)}")
    return "\n".join(lines)


def spread(values: list[float], headline: str) -> str:
    """Mean ± sample standard deviation, and every value; losses as they are, all else in percent."""
    scale, digits, unit = (1, 6, "") if headline == "loss" else (100, 1, " %")
    scaled = [scale * value for value in values]
    deviation = f" ± {statistics.stdev(scaled):.{digits}f}" if len(scaled) > 1 else ""
    each = ", ".join(f"{value:.{digits}f}" for value in scaled)
    return f"{statistics.mean(scaled):.{digits}f}{deviation}{unit}   ({each})"


if __name__ == "__main__":
    sys.exit(main())
