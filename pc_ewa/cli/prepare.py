"""`pc-ewa prepare`: convert a published dataset or your own shapes to one HDF5 file that loads at once."""

from __future__ import annotations  # as in package.py

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pc_ewa.cli.command import Parser, command
from pc_ewa.errors import ConfigError, DataError
from pc_ewa.text import printable

if TYPE_CHECKING:
    from pc_ewa.data.dataset import Archive, Dataset

DESCRIPTION = """\
Download a dataset and convert it to one file that loads at once, or convert your own shapes to such a file."""

EPILOG = """\
examples:
  pc-ewa prepare --list
  pc-ewa prepare modelnet40
  pc-ewa prepare modelnet40 --archive modelnet40_ply_hdf5_2048.zip
  pc-ewa prepare scanobjectnn variant=obj_bg --from /data/h5_files
  pc-ewa prepare files my_shapes/ -o mine.h5 --up y
  pc-ewa prepare files scans/ -o scans.h5 --group-by '[0-9]+'   # cup/12_left.ply and cup/12_right.ply stay together
Then train with data.name=modelnet40, or data.name=hdf5 data.path=mine.h5.

A download needs your consent to the terms of the dataset. Its digest is checked. If stopped, it continues later."""


def create_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(prog="pc-ewa prepare", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("name", nargs="?", help="a dataset, as --list shows them, or: files")
    parser.add_argument(
        "values",
        nargs="*",
        default=[],
        metavar="key=value",
        help="options of the dataset, as in variant=obj_bg; for files: FOLDER",
    )
    parser.add_argument("--list", action="store_true", help="show every dataset, and what of it is on this machine")
    parser.add_argument("--root", default="datasets", help="the folder with one folder per dataset (default: datasets)")
    parser.add_argument("--from", dest="folder", metavar="FOLDER", help="convert files that are there, in any format")
    parser.add_argument("--archive", metavar="FILE", help="which archive to download, where there are several")
    parser.add_argument("--accept", action="store_true", help="consent to the terms, to download without a question")
    parser.add_argument("--overwrite", action="store_true", help="replace what is prepared already")
    parser.add_argument(
        "--points", type=_count, metavar="N", help="points per shape (default: as published; files: 2048)"
    )
    parser.add_argument("-o", "--output", metavar="FILE.h5", help="files: where to write")
    parser.add_argument(
        "--up", choices=("x", "y", "z"), default="z", help="files: the axis that points up (default: z)"
    )
    parser.add_argument("--seed", type=int, default=0, help="files: of the drawn points and the split (default: 0)")
    parser.add_argument(
        "--test-fraction", type=float, default=0.2, help="files: share that goes to test if no split is given (0.2)"
    )
    parser.add_argument(
        "--group-by", metavar="REGEX", help="files: shapes in whose names it finds the same text go to one split"
    )
    return parser


@command("prepare", extra="data")
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, then list, convert files, or prepare a dataset."""
    options = create_parser().parse_intermixed_args(arguments)
    from pc_ewa.data.prepare import listed, table_of_datasets

    if options.list:
        _print_table(table_of_datasets(Path(options.root)))
    elif options.name is None:
        raise ConfigError(f"which dataset? Choose from {', '.join(listed())}; or give files FOLDER, or --list")
    elif options.name == "files":
        _files(options)
    else:
        _prepare(options)


def _prepare(options: argparse.Namespace) -> None:
    """Download and unpack if necessary, convert, and print the contents of the new file."""
    from pc_ewa.data.convert import convert
    from pc_ewa.data.prepare import get_source

    name, dataset = options.name, _chosen(options)
    if options.output is not None:
        raise ConfigError(f"-o is for files; {name} goes to its folder in --root, where training finds it")
    if options.group_by is not None:
        raise ConfigError(f"--group-by is for files; {name} has its own splits")
    values = _key_values(options.values)
    points = options.points
    # Some sources sample meshes: they sample this number directly. Others have points, and `convert` subsamples them.
    if points is not None and "stored_points" in dataset.source_arguments(values):
        values, points = values | {"stored_points": points}, None
    arguments = dataset.source_arguments(values)
    folder = Path(options.root) / name
    path = dataset.prepared(folder, **arguments)
    if path.exists() and not options.overwrite:
        print(f"{path} is there already; nothing to do (--overwrite converts again with these options)")
        return
    print(f"{dataset.title}\nlicence: {dataset.licence}\n{dataset.terms}\n", flush=True)
    if options.folder is not None:
        source = dataset.open(Path(options.folder), **arguments)
    else:
        consent = partial(_ask, name, options.accept)
        source = get_source(dataset, folder, arguments, consent, archive=options.archive, say=_say)
    convert(source, path, num_points=points)
    _report(path)
    settings = {"name": name, "root": options.root} | values
    print(f"\ntraining needs only this file: {' '.join(f'data.{key}={settings[key]}' for key in settings)}")


def _chosen(options: argparse.Namespace) -> Dataset:
    """Look the dataset up. Suggest `files` for a folder of the user's shapes."""
    from pc_ewa.data.prepare import listed
    from pc_ewa.validation import nearest

    datasets = listed()
    if options.name in datasets:
        return datasets[options.name]
    hint = nearest(options.name, [*datasets, "files"])
    folder = next((word for word in (options.name, *options.values) if os.path.isdir(word)), None)
    if folder is not None:
        hint = f"did you mean: pc-ewa prepare files {shlex.join([folder, '-o', options.output or 'mine.h5'])}"
    raise ConfigError(f"unknown dataset {options.name!r}; {hint}")


def _say(line: str) -> None:
    print(line, flush=True)


def _ask(name: str, accepted: bool, archive: Archive) -> None:
    """Get the user's consent before a download: by a question on a terminal, by --accept elsewhere.

    Raises:
        DataError: no consent.
    """
    from pc_ewa.data.prepare import size_in_words

    if accepted:
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise DataError(f"to download {name} you must consent to its terms: read them above, then add --accept")
    try:
        answer = input(f"Do you consent? Then {archive.file} ({size_in_words(archive.size)}) is downloaded. [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise DataError(f"nothing was downloaded; --from FOLDER converts a copy of {name} that you have")


def _files(options: argparse.Namespace) -> None:
    """Convert a folder of the user's own shapes."""
    if len(options.values) != 1 or options.output is None:
        raise ConfigError("give one folder and an output: pc-ewa prepare files FOLDER -o mine.h5")
    folder, output, points = Path(options.values[0]), Path(options.output), options.points or 2048
    from pc_ewa.data.formats.readers import PREPARED
    from pc_ewa.data.prepare_files import describe_files, prepare_files

    if output.suffix.lower() not in PREPARED:
        raise ConfigError(f"-o {output} is for an HDF5 file; end its name in {' or '.join(PREPARED)}")
    if output.exists() and not options.overwrite:
        raise DataError(f"{output} is there already; choose another -o, or add --overwrite")
    if not 0 <= options.seed < 2**32:
        raise ConfigError(f"--seed is {options.seed}; choose one from 0 to {2**32 - 1}")
    prepared = prepare_files(
        folder,
        output,
        num_points=points,
        up_axis=options.up,
        test_fraction=options.test_fraction,
        seed=options.seed,
        group_by=options.group_by,
    )
    _report(output)
    for paragraph in describe_files(prepared):
        print("", *(printable(line, None) for line in paragraph), sep="\n")
    if not prepared.lacks:
        _report_training(output, points)


def _report_training(output: Path, points: int) -> None:
    """Print the command that trains on a file, or how many points its model needs."""
    from pc_ewa.yaml_config import read_yaml

    arguments = [f"data.path={output}"]
    if points < read_yaml("own_data")["data"]["num_points"]:
        # Imported only here, because to resolve the config takes two seconds.
        from pc_ewa.config import load_experiment
        from pc_ewa.config.resolve import largest_need

        key, needed = largest_need(load_experiment("own_data").model.arguments)
        if points < needed:
            print(f"\nnote: own_data needs {needed} points of each shape or more, as {key}={needed}: --points {needed}")
            return
        arguments.append(f"data.num_points={points}")
    print(f"\ntrain on it: pc-ewa train own_data {shlex.join(arguments)}")


def _report(path: Path) -> None:
    """Print the number of shapes in each class and split of a prepared file."""
    from pc_ewa.data.prepare import describe

    line, rows = describe(path)
    print(line)
    _print_table(rows, right=True)


def _key_values(values: list[str]) -> dict[str, Any]:
    """Parse key=value, with values in YAML as in a config."""
    from pc_ewa.yaml_config import parse_yaml

    for value in values:
        if "=" not in value:
            raise ConfigError(f"{value!r} is not an option; write key=value, such as variant=obj_bg")
    try:
        return {key: parse_yaml(text) for key, _, text in (value.partition("=") for value in values)}
    except ValueError as error:
        raise ConfigError(f"the options {' '.join(values)} are not YAML: {error}") from error


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def _print_table(rows: list[list[str]], right: bool = False) -> None:
    """Print aligned rows, with a rule below the first. `right` aligns all columns but the first to the right."""
    rows = [[printable(cell, None) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for i, row in enumerate(rows):
        cells = [f"{c:>{w}}" if right and k else f"{c:<{w}}" for k, (c, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells).rstrip())
        if i == 0:
            print("-" * (sum(widths) + 2 * len(widths) - 2))
