"""`pc-ewa evaluate`: the metrics of a checkpoint."""

from __future__ import annotations  # as in package.py

import argparse
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pc_ewa.cli.command import Parser, add_config_overrides, command, refuse_overwriting
from pc_ewa.errors import CheckpointError, ConfigError
from pc_ewa.files import read_json, write_text

if TYPE_CHECKING:
    from pc_ewa.eval import FewShot, Score
    from pc_ewa.eval.errors import WrongSample
    from pc_ewa.train.restore import Restored

DESCRIPTION = """\
Measure a checkpoint: accuracy, mIoU or loss, by its task; a linear SVM on its features; few-shot folds."""

EPILOG = """\
examples:
  pc-ewa evaluate runs/quickstart/checkpoints/merged_last.pt
  pc-ewa evaluate runs/quickstart/checkpoints/best.pt --split val
  pc-ewa evaluate runs/quickstart/checkpoints/merged_last.pt --votes 10
  pc-ewa evaluate runs/quickstart/checkpoints/merged_last.pt --errors wrong.csv
  pc-ewa evaluate modelnet_1k.pth --config finetune/modelnet40
  pc-ewa evaluate part_seg.pth --config finetune/shapenetpart
  pc-ewa evaluate runs/quickstart_pretrain/checkpoints/merged_last.pt --protocol svm
  pc-ewa evaluate random --config quickstart_pretrain --protocol svm    # untrained weights
  pc-ewa evaluate pretrain.pth --protocol fewshot --config finetune/fewshot output=runs/fewshot

Our own checkpoints contain their config; "random" is the config's model with the initial weights of its seed. A
checkpoint with mixtures is merged first, unless it is gated. If the run averaged weights, the averaged ones are
measured. A table is printed, and all results are written as JSON.

  score    the metric of the task: accuracy and confusions, mIoU of parts, or the pre-training loss. --votes K averages
           the logits over K random subsets and augmentations of each cloud, and marks the result as "voted".
  svm      a linear SVM on frozen features of probe.data, or of data if there is no probe. For test it is fitted to all
           training shapes, and C is chosen among them.
  fewshot  4 settings x 10 folds, each trained from the checkpoint and measured. The same command continues after the
           last finished fold."""


def create_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(prog="pc-ewa evaluate", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument(
        "checkpoint", help='a run folder, a file of ours (last.pt, best.pt, ...), an official one, or "random"'
    )
    add_config_overrides(parser, "change keys of the config, as in data.root=/data")
    parser.add_argument("--config", metavar="CONFIG", help="the experiment, for checkpoints that do not hold one")
    parser.add_argument(
        "--protocol",
        choices=("score", "svm", "fewshot"),
        default="score",
        help="see below (default: score)",
    )
    parser.add_argument(
        "--split", choices=("train", "val", "test"), default="test", help="which split to measure (default: test)"
    )
    parser.add_argument("--votes", type=int, default=1, metavar="K", help="score of classifiers: mean of K votes")
    parser.add_argument("--folds", type=int, default=10, metavar="N", help="fewshot: the first N folds (default: 10)")
    parser.add_argument(
        "--setting", action="append", metavar="WAYxSHOT", help="fewshot: as 5x10, repeatable (default: all)"
    )
    parser.add_argument("--errors", metavar="FILE.csv", help="score of classifiers: list every sample that is wrong")
    parser.add_argument("--json", metavar="FILE", help="where to write (default: beside the checkpoint)")
    return parser


@command("evaluate", extra="train")
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, evaluate, print."""
    options = create_parser().parse_intermixed_args(arguments)
    check(options)
    if options.checkpoint != "random":
        from pc_ewa.train.run_folder import checkpoint_of

        options.checkpoint = str(checkpoint_of(Path(options.checkpoint)))
    result: FewShot | Score
    if options.protocol == "fewshot":
        title, result, place = fewshot(options)
    else:
        restored = restored_from(options)
        place = json_path(options, restored)
        check_place(place)
        title, result = measure(restored, options)
    content = {"checkpoint": options.checkpoint, "protocol": options.protocol, "split": options.split}
    content |= {key: given for key in ("config", "overrides") if (given := getattr(options, key))}
    write_json(place, content | result.to_json())  # before anything is printed: a closed pipe loses nothing
    print(f"{title}\n{result.table()}\n\nwritten to {place}")


def check(options: argparse.Namespace) -> None:
    """Check the options before anything is loaded."""
    if options.votes < 1:
        raise ConfigError(f"--votes {options.votes}; give 1 (one forward pass for each cloud) or more")
    if options.votes > 1 and options.protocol != "score":
        raise ConfigError(f"--votes is for --protocol score, not for {options.protocol}")
    if not 1 <= options.folds <= 10:
        raise ConfigError(f"--folds {options.folds}; give 1 to 10")
    if options.checkpoint == "random" and not options.config:
        raise ConfigError('"random" needs --config CONFIG, which names the model')
    if options.protocol == "fewshot" and not options.config:
        raise ConfigError("--protocol fewshot needs --config, such as finetune/fewshot")
    if options.protocol == "fewshot" and options.split != "test":
        raise ConfigError(f"--split {options.split}; --protocol fewshot measures every fold on its test shapes")
    if options.protocol != "fewshot" and (options.folds != 10 or options.setting):
        raise ConfigError("--folds and --setting are for --protocol fewshot")
    if options.errors and (options.protocol != "score" or options.votes > 1):
        raise ConfigError("--errors is for --protocol score, without --votes")
    for place in (options.json, options.errors):
        if place:
            check_place(Path(place))
    refuse_overwriting({"--json": options.json, "--errors": options.errors}, [options.checkpoint, options.config])


def restored_from(options: argparse.Namespace) -> Restored:
    """Build the model, with the weights of the checkpoint or untrained."""
    from pc_ewa.train.restore import restore, untrained

    if options.checkpoint == "random":
        return untrained(options.config, options.overrides)
    return restore(options.checkpoint, options.config, options.overrides)


def measure(restored: Restored, options: argparse.Namespace) -> tuple[str, Score]:
    """Evaluate by the chosen protocol. Returns a title with the notes on the checkpoint, and the score."""
    data = restored.experiment.data
    if options.protocol == "svm":
        data, score = restored.svm_data, restored.linear_svm(options.split)
    elif options.errors:
        score, wrong = restored.errors(options.split)
        write_errors(Path(options.errors), wrong)
        print(f"written to {options.errors}: {len(wrong)} wrong samples")
    elif options.votes > 1:
        score = restored.vote(options.split, options.votes)
    else:
        score = restored.evaluate(options.split)
    notes = [f"note: {note}" for note in restored.notes]
    return "\n".join([*notes, f"{options.checkpoint} on {options.split} of {data.name}"]), score


def fewshot(options: argparse.Namespace) -> tuple[str, FewShot, Path]:
    """Train and measure the folds. Returns a title, the result, and the path of its JSON file."""
    from pc_ewa.compare.fewshot import run_fewshot
    from pc_ewa.eval.fewshot import SETTINGS

    # dict.fromkeys drops repeated settings and keeps their order.
    settings = tuple(dict.fromkeys(map(parse_setting, options.setting or []))) or SETTINGS
    start = None if options.checkpoint == "random" else options.checkpoint
    if start and not Path(start).is_file():
        raise CheckpointError(f"{start} is not a file; check the path of the checkpoint")
    result, output = run_fewshot(options.config, options.overrides, start, settings, options.folds)
    return f"\nfew-shot from {start or 'scratch'}", result, Path(options.json or f"{output}/fewshot.json")


def parse_setting(text: str) -> tuple[int, int]:
    """Read "5x10" as 5 way, 10 shot."""
    from pc_ewa.eval.fewshot import SETTINGS

    way, _, shot = text.partition("x")
    if not (way.isdigit() and shot.isdigit()) or (int(way), int(shot)) not in SETTINGS:
        raise ConfigError(f"--setting {text}; choose from {', '.join(f'{w}x{s}' for w, s in SETTINGS)}")
    return int(way), int(shot)


def json_path(options: argparse.Namespace, restored: Restored) -> Path:
    """Return the path of --json, or else a path beside the checkpoint, named after protocol and split.

    If that file has the result of another config or other overrides, the name gets these too: no result is replaced.
    """
    if options.json:
        return Path(options.json)
    checkpoint, voted = Path(options.checkpoint), f"_voted{options.votes}" if options.votes > 1 else ""
    folder = Path(restored.experiment.output) if options.checkpoint == "random" else checkpoint.parent
    what = f"{options.protocol}{voted}.{options.split}"
    place = folder / f"{checkpoint.stem}.{what}.json"
    if result_options(place) in (None, asked := [checkpoint.name, options.config, options.overrides]):
        return place
    words = ".".join([what, *filter(None, [options.config]), *options.overrides])
    words = re.sub(r"[^\w.=-]", "_", words)[:100]
    return folder / f"{checkpoint.name}.{words}-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]}.json"


def result_options(path: Path) -> list[Any] | None:
    """Return the checkpoint, config and overrides of a written result. None if there is no result."""
    try:
        content = read_json(path)
        return [Path(content["checkpoint"]).name, content.get("config"), content.get("overrides", [])]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def check_place(path: Path) -> None:
    """Raise ConfigError for a path that cannot be written, before hours are spent on the result."""
    # The nearest ancestor that exists decides, as missing folders are created.
    nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
    if path.is_dir() or (nearest != path and not nearest.is_dir()) or not os.access(nearest, os.W_OK):
        raise ConfigError(f"{path} cannot be written; choose another place for it")


def write_errors(path: Path, wrong: Sequence[WrongSample]) -> None:
    """Write the misclassified samples as CSV, one per row."""
    from pc_ewa.eval.errors import errors_as_csv
    from pc_ewa.files import write_text

    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, errors_as_csv(wrong))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write the result. A path that cannot be written raises ConfigError, which names --json."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; choose another with --json FILE") from None
