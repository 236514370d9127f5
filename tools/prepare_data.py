"""Get a dataset and convert it to one file that loads at once; or make such a file of your own shapes."""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml

from pc_ewa.data.catalog import CATALOG, Archive, Entry
from pc_ewa.data.convert import Converted, convert
from pc_ewa.data.download import download
from pc_ewa.data.layout import Layout
from pc_ewa.data.readers import EXTENSIONS
from pc_ewa.data.source import Source
from pc_ewa.data.unpack import unpack
from pc_ewa.errors import ConfigError, DataError, Error, exit_on_error
from pc_ewa.validation import choose

EPILOG = """\
examples:
  python tools/prepare_data.py --list
  python tools/prepare_data.py modelnet40
  python tools/prepare_data.py modelnet40 --archive modelnet40_ply_hdf5_2048.zip
  python tools/prepare_data.py scanobjectnn variant=obj_bg --from /data/h5_files
  python tools/prepare_data.py files my_shapes/ -o mine.h5 --up y
Then train with data.name=modelnet40, or data.name=hdf5 data.path=mine.h5.

A download asks for your consent to the terms of the dataset first, is checked, and continues where it was stopped."""

_LISTED = 20  # skipped files in the report


@exit_on_error
def main(arguments: list[str] | None = None) -> None:
    """Parse, then list, convert files, or prepare a dataset."""
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    if options.list:
        _list(Path(options.root))
    elif options.name is None:
        raise ConfigError(f"which dataset? Choose from {', '.join(CATALOG)}; or give files FOLDER, or --list")
    elif options.name == "files":
        _files(options)
    else:
        _prepare(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", help=f"a dataset ({', '.join(CATALOG)}), or: files")
    parser.add_argument(
        "values", nargs="*", metavar="key=value", help="options of the dataset, as in variant=obj_bg; for files: FOLDER"
    )
    parser.add_argument("--list", action="store_true", help="show every dataset, and what of it is on this machine")
    parser.add_argument("--root", default="datasets", help="the folder with one folder per dataset (default: datasets)")
    parser.add_argument("--from", dest="folder", metavar="FOLDER", help="convert files that are there, in any format")
    parser.add_argument("--archive", metavar="FILE", help="which archive to download, where there are several")
    parser.add_argument("--accept", action="store_true", help="consent to the terms, to download without a question")
    parser.add_argument("--again", action="store_true", help="convert again what is prepared already")
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
    return parser


def _prepare(options: argparse.Namespace) -> None:
    """Download and unpack if need be, convert, and say what came out."""
    name, entry = options.name, choose("dataset", options.name, CATALOG)
    if options.output is not None:
        raise ConfigError(f"-o is for files; {name} goes to its folder in --root, where training finds it")
    values = _key_values(options.values)
    points = options.points
    if points is not None and "stored_points" in entry.arguments(
        name, values
    ):  # then it is for the source to draw them
        values, points = values | {"stored_points": points}, None
    arguments = entry.arguments(name, values)
    folder = Path(options.root) / name
    path = folder / entry.file_name(name, arguments)
    if path.exists() and not options.again:
        print(f"{path} is there already; nothing to do (--again makes it anew, as asked now)")
        return
    print(f"{entry.title}\nlicence: {entry.licence}\n{entry.terms}\n", flush=True)
    opener = entry.opener()
    if options.folder is not None:
        source = opener(Path(options.folder), **arguments)
    else:
        source = _published(name, entry, folder, arguments, options)
    convert(source, path, num_points=points)
    _report(path)
    settings = {"name": name, "root": options.root} | values
    print(f"\nthis file is all that training needs: {' '.join(f'data.{key}={settings[key]}' for key in settings)}")


def _published(name: str, entry: Entry, folder: Path, arguments: dict[str, Any], options: argparse.Namespace) -> Source:
    """Open the published files in the folder of the dataset; if they are not there, get them."""
    opener = entry.opener()
    try:
        return opener(folder, **arguments)
    except DataError as error:
        if entry.has_files(folder):
            print(f"the files in {folder} are of no use: {error}", flush=True)
        if not entry.archives:
            raise DataError(f"no program can download {name}: {entry.manual}") from error
    known = {archive.file: archive for archive in entry.archives}
    present = [file for file in known if (folder / file).exists()]
    archive = choose("archive", options.archive or (present or list(known))[0], known)
    if not (folder / archive.file).exists():
        _ask(name, archive, options.accept)
    try:
        file = download(
            archive.urls, folder / archive.file, size=None if archive.digests else archive.size, digests=archive.digests
        )
    except DataError as error:
        raise DataError(f"{error}; or by hand: {entry.manual}") from error
    made = unpack(file, folder)
    print(f"unpacked to {made}; once converted, {file.name} and this folder can be removed", flush=True)
    return opener(folder, **arguments)


def _ask(name: str, archive: Archive, accepted: bool) -> None:
    """Download nothing without consent: a question on a terminal, an option elsewhere.

    Raises:
        DataError: no consent.
    """
    if accepted:
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise DataError(f"to download {name} you must consent to its terms: read them above, then add --accept")
    try:
        answer = input(f"Do you consent? Then {archive.file} ({_size(archive.size)}) is downloaded. [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise DataError(f"nothing was downloaded; --from FOLDER converts a copy of {name} that you have")


def _files(options: argparse.Namespace) -> None:
    """Convert a folder of the user's own shapes."""
    if len(options.values) != 1 or options.output is None:
        raise ConfigError("give one folder and an output: python tools/prepare_data.py files FOLDER -o mine.h5")
    folder, output = Path(options.values[0]), Path(options.output)
    if output.exists() and not options.again:
        raise DataError(f"{output} is there already; choose another -o, or add --again")
    if not 0 <= options.seed < 2**32:
        raise ConfigError(f"--seed is {options.seed}; choose one from 0 to {2**32 - 1}")
    from pc_ewa.data.files import source

    points, share = options.points or 2048, options.test_fraction
    shapes = source(folder, stored_points=points, up_axis=options.up, test_fraction=share, seed=options.seed)
    done = convert(shapes, output, dtype="float32", skip_defects=True)  # units may differ from file to file
    _report(output)
    _report_skipped(done)
    _report_ignored(folder)
    print(f"\ntrain on it with data.name=hdf5 data.path={output}")


def _report(path: Path) -> None:
    """Print how many shapes of each class and split are in a prepared file."""
    with h5py.File(path, "r") as file:
        layout, shape = Layout(file, path), file["data"].shape
    splits = list(layout.used_splits())
    rows = [["class", *splits]]
    for label, name in enumerate([*layout.class_names, "all"]):
        mine = layout.labels == label if label < len(layout.class_names) else np.ones(len(layout.labels), bool)
        counts = [int((mine & (layout.splits == layout.split_names.index(split))).sum()) for split in splits]
        rows.append([name, *(f"{count:,}" for count in counts)])
    print(f"{path}: {shape[0]:,} shapes of {shape[1]:,} points, {layout.up_axis} up")
    _print_table(rows, right=True)


def _report_skipped(done: Converted) -> None:
    if done.skipped:
        print(f"\nskipped {len(done.skipped):,} that cannot be used:")
        for name, reason in done.skipped[:_LISTED]:
            print(f"  {reason if name in reason else f'{name}: {reason}'}")
        if len(done.skipped) > _LISTED:
            print(f"  and {len(done.skipped) - _LISTED:,} more")


def _report_ignored(folder: Path) -> None:
    """Say which files were not looked at, as nobody reads such ones."""
    names = [path.suffix.lower() or path.name for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    unknown = Counter(name for name in names if name not in EXTENSIONS)
    if unknown:
        kinds = ", ".join(f"{name} ({count})" for name, count in unknown.most_common(_LISTED))
        print(f"\nignored files of other kinds: {kinds}; read are {' '.join(EXTENSIONS)}")


def _list(root: Path) -> None:
    rows = [["dataset", "download", "licence", f"in {root}"]]
    for name, entry in CATALOG.items():
        size = _size(entry.archives[0].size) if entry.archives else "by hand" if entry.source else "bundled"
        rows.append([name, size, entry.licence, _state(name, entry, root / name)])
    _print_table(rows)


def _state(name: str, entry: Entry, folder: Path) -> str:
    """Say what of a dataset is on this machine."""
    prepared = sorted(path.name for path in folder.glob(f"{name}*.h5"))
    if prepared:
        return f"ready: {', '.join(prepared)}"
    if not entry.has_files(folder):
        origin = entry.drawn_from
        return "absent" if origin is None else f"drawn from {origin}"
    try:
        source = entry.opener()(folder, **entry.arguments(name, {}))
    except Error as error:
        return f"not usable: {error}"
    return f"published files, {len(source.items):,} shapes: prepare them to load faster"


def _key_values(values: list[str]) -> dict[str, Any]:
    """Parse key=value, with values in YAML as in a config."""
    for value in values:
        if "=" not in value:
            raise ConfigError(f"{value!r} is no option; write key=value, such as variant=obj_bg")
    try:
        return {key: yaml.safe_load(text) for key, _, text in (value.partition("=") for value in values)}
    except yaml.YAMLError as error:
        raise ConfigError(f"the options {' '.join(values)} are no YAML: {error}") from error


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def _size(number: int | None) -> str:
    """Say how large a file is."""
    return "size unknown" if number is None else f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def _print_table(rows: list[list[str]], right: bool = False) -> None:
    """Print rows under a line, aligned; `right` aligns all but the first column there."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for i, row in enumerate(rows):
        cells = [f"{c:>{w}}" if right and k else f"{c:<{w}}" for k, (c, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells).rstrip())
        if i == 0:
            print("-" * (sum(widths) + 2 * len(widths) - 2))


if __name__ == "__main__":
    sys.exit(main())
