"""`pc-ewa predict`: predictions of a model for files."""

from __future__ import annotations  # as in package.py

import argparse
import csv
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pc_ewa.cli.command import Parser, add_what_files_lack, class_names, command, refuse_overwriting
from pc_ewa.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pc_ewa.inference import PartPrediction, Prediction
    from pc_ewa.inference.clouds import Input

DESCRIPTION = """\
Predict the class of clouds and meshes, or the part of each of their points."""

EPILOG = """\
examples:
  pc-ewa predict furniture chair.ply                          # the model that comes with the package
  pc-ewa predict runs/quickstart scans/ --csv scans.csv --picture scans.png
  pc-ewa predict my_vit.safetensors one.obj two.pcd --top 5 --up y
  pc-ewa predict owner/name scans/ --strict                   # a model of the Hugging Face Hub
  pc-ewa predict modelnet_1k.pth scans/ --config finetune/modelnet40
  pc-ewa predict runs/parts chair.ply --category Chair -o parts/

MODEL is a run folder, a checkpoint, a folder of save_pretrained, owner/name of the Hub, or "furniture". The file
formats are those of training; folders are searched at any depth. Clouds are presented to the model as in evaluation:
meshes are sampled on their surface, clouds are subsampled to the number of points of the training data, then scaled.
The same points give the same prediction every time.

A file that cannot be read is reported and skipped, and the exit code is 2. --strict stops at the first one."""

PARTS = "parts"  # the folder for coloured files
_WIDEST = 60  # name of a file in the table; CSV and JSON have all of it


def create_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(prog="pc-ewa predict", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("model", metavar="MODEL", help="the trained model, see below")
    parser.add_argument("inputs", nargs="+", metavar="FILE|FOLDER", help="clouds or meshes, or folders of them")
    parser.add_argument("--top", type=int, default=3, metavar="K", help="classes in the table (default: 3)")
    parser.add_argument("--csv", metavar="FILE", help="write all probabilities, one file a row")
    parser.add_argument("--json", metavar="FILE", help="the same as JSON")
    parser.add_argument(
        "--picture", metavar="FILE", help="draw the first 24 clouds with their classes or parts: .png .svg .pdf .html"
    )
    parser.add_argument(
        "--up", choices=("x", "y", "z"), help="the axis that points up in these files, if not the model's"
    )
    parser.add_argument("--category", metavar="NAME", help="segmenters: the class of the shapes")
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", help="segmenters: where the coloured PLY files go (default: parts)"
    )
    parser.add_argument("--strict", action="store_true", help="stop at the first file that cannot be read")
    add_what_files_lack(parser)
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: that of the run")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="clouds at once (default: 64)")
    return parser


@command("predict", extra="data")
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, predict, write, print."""
    options = create_parser().parse_intermixed_args(arguments)
    check(options)
    from pc_ewa.inference import as_inputs, load_model

    clouds, _ = as_inputs(options.inputs)
    check_outputs(options, [cloud.name for cloud in clouds])
    model: Any = load_model(
        options.model,
        options.config,
        class_names=class_names(options),
        device=options.device,
        precision=options.precision,
    )
    for note in model.notes:
        print(f"note: {note}", file=sys.stderr)  # stdout has the table alone
    segments = model.task == "segment"
    if not segments and options.output is not None:
        raise ConfigError(f"-o {options.output} is for segmenters; --csv and --json take the classes")
    skipped: list[tuple[Input, DataError]] = []
    found = predicted(model, clouds, options, None if options.strict else lambda *bad: skipped.append(bad))
    if segments:
        rows, records = describe_parts(found, [cloud.name for cloud in clouds], Path(options.output or PARTS))
    else:
        rows, records = describe_classes(found, options.top)
    write(records, options)
    print_table(rows)
    if options.picture is not None and found:
        from pc_ewa.inference.picture import predicted_scene
        from pc_ewa.viz import draw

        draw([(predicted_scene(found, clouds, model.preprocessing, options.up), Path(options.picture))])
    for _, error in skipped:
        print(f"skipped: {' '.join(str(error).split())}", file=sys.stderr)
    if skipped:
        raise DataError(f"{len(skipped)} of {len(clouds)} files could not be used; they are named above")


def check(options: argparse.Namespace) -> None:
    """Check the options before anything is loaded."""
    for name in ("top", "batch_size"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(options, name)}; give 1 or more")
    for path in (options.csv, options.json):
        if path is not None and (Path(path).is_dir() or not os.access(Path(path).absolute().parent, os.W_OK)):
            raise ConfigError(f"{path} cannot be written; choose a file in a folder that is there")
    if options.picture is not None:
        from pc_ewa.viz.renderers.sheet import check_picture

        check_picture(Path(options.picture))
    if options.output is not None and Path(options.output).is_file():
        raise ConfigError(f"-o {options.output} is a file; choose a folder")


def check_outputs(options: argparse.Namespace, names: Sequence[str]) -> None:
    """Check that no output replaces a file that is read, or lies where the next call would read it as input."""
    written: dict[str, str | Path | None] = {f"--{name}": getattr(options, name) for name in ("csv", "json", "picture")}
    if options.category is not None or options.output is not None:
        for name in dict.fromkeys(names):
            written[f"-o for {name}"] = parts_path(name, names, Path(options.output or PARTS))
    saved = [Path(options.model, name) for name in ("config.json", "model.safetensors")]
    refuse_overwriting(written, [options.model, *saved, options.config, options.class_names, *names])
    # .csv is a format of clouds: in an input folder the table would be read as one. So would the PLY files of -o.
    places = {} if options.csv is None else {"--csv": options.csv}
    if options.output is not None or options.category is not None:
        places["-o"] = options.output or PARTS
    for option, place in places.items():
        for name in filter(os.path.isdir, options.inputs):
            if Path(os.path.realpath(place)).is_relative_to(os.path.realpath(name)):
                raise ConfigError(f"{option} {place} lies in {name}, where the next call would read it; choose another")


def predicted(model: Any, clouds: Sequence[Input], options: argparse.Namespace, on_error: Any) -> list[Any]:
    """Predict batch by batch, with a progress bar."""
    from pc_ewa.inference import predict_each
    from pc_ewa.progress import progress

    size = options.batch_size
    found: list[Any] = []
    for begin in progress(range(0, len(clouds), size), f"predicting, {size} at a time"):
        some = clouds[begin : begin + size]
        found += predict_each(model, some, category=options.category, up=options.up, batch_size=size, on_error=on_error)
    return found


def describe_classes(found: Sequence[Prediction], top: int) -> tuple[list[list[str]], list[dict[str, Any]]]:
    """Return the rows of the table, and the records for CSV and JSON."""
    rows, records = [], []
    for prediction in found:
        best = prediction.top(top)
        rows.append([prediction.name, *(f"{name} {probability:.1%}" for name, probability in best)])
        every = dict(zip(prediction.class_names, prediction.probabilities.tolist(), strict=True))
        records.append(_record(prediction.name, prediction.label, prediction.probability, every))
    return rows, records


def _record(name: str, label: str, probability: float, every: dict[str, float]) -> dict[str, Any]:
    return {"file": name, "class": label, "probability": probability, "probabilities": every}


def parts_path(name: str, names: Sequence[str], folder: Path) -> Path:
    """Return the output path for a file: its path relative to the common folder of all files, placed in `folder`."""
    root = os.path.commonpath([os.path.dirname(os.path.abspath(other)) for other in names])
    place = folder / Path(os.path.abspath(name)).relative_to(root)
    return place.with_name(f"{place.name}.ply")


def describe_parts(
    found: Sequence[PartPrediction], names: Sequence[str], folder: Path
) -> tuple[list[list[str]], list[dict[str, Any]]]:
    """Write a coloured PLY file for each cloud. Returns the rows of the table, and the records for CSV and JSON."""
    from pc_ewa.inference.parts_file import write_parts

    rows, records = [], []
    for prediction in found:
        path = parts_path(prediction.name, names, folder)
        write_parts(prediction, path)
        counts = dict(sorted(Counter(prediction.parts.tolist()).items()))
        rows.append([prediction.name, *(f"part {part}: {count}" for part, count in counts.items()), f"-> {path}"])
        points = {str(part): count for part, count in counts.items()}
        records.append({"file": prediction.name, "class": prediction.category, "output": str(path), "points": points})
    return rows, records


def write(records: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    """Write the CSV and JSON files that were requested."""
    from pc_ewa.files import write_text

    if options.json is not None:
        write_text(Path(options.json), json.dumps(list(records), indent=2, ensure_ascii=False) + "\n")
    if options.csv is not None:
        write_text(Path(options.csv), as_csv(records))


def as_csv(records: Sequence[dict[str, Any]]) -> str:
    """Format records as CSV, one row per file. A nested dict has a column for each of its keys."""
    flat = []
    for record in records:
        row: dict[str, Any] = {}
        for key, value in record.items():
            row |= {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
        flat.append(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in flat for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print the rows in aligned columns. Long file names lose their beginning."""
    from pc_ewa.text import printable

    plain = [[printable(cell, None) for cell in row] for row in rows]
    short = [[name if len(name) <= _WIDEST else "..." + name[3 - _WIDEST :], *cells] for name, *cells in plain]
    columns = max(map(len, short), default=0)
    widths = [max(len(row[i]) for row in short if i < len(row)) for i in range(columns)]
    for row in short:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)).rstrip())
