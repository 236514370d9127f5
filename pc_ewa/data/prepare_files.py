"""The work of `pc-ewa prepare files`: convert a folder of the user's shapes, and find what the user should know."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from pc_ewa.data.clouds import UpAxis
from pc_ewa.data.convert import convert
from pc_ewa.data.formats.kinds import advice
from pc_ewa.data.formats.readers import EXTENSIONS
from pc_ewa.data.near_copies import NearCopies
from pc_ewa.data.own_files import source
from pc_ewa.data.own_folder import unread_kinds
from pc_ewa.data.own_splits import lost_classes

_LISTED = 20  # skipped files, and kinds of ignored files, in the report


class PreparedFiles(NamedTuple):
    """What was made of a folder.

    Attributes:
        skipped: names of the shapes that cannot be used, each with the reason.
        ignored: number of files that no reader supports, by extension.
        notes: remarks for the user, one line each.
        lacks: what a classifier needs and the new file lacks.
    """

    skipped: list[tuple[str, str]]
    ignored: Counter[str]
    notes: list[str]
    lacks: list[str]


def prepare_files(
    folder: Path,
    output: Path,
    *,
    num_points: int,
    up_axis: UpAxis,
    test_fraction: float,
    seed: int,
    group_by: str | None,
) -> PreparedFiles:
    """Convert a folder of shapes to a file. The arguments are those of `own_files.load`.

    Raises:
        ConfigError, DataError, MissingPackageError: as `own_files.source` and `convert`.
    """
    copies = NearCopies()
    shapes = source(
        folder,
        stored_points=num_points,
        up_axis=up_axis,
        test_fraction=test_fraction,
        seed=seed,
        group_by=group_by,
        seen=copies.add,
    )
    done = convert(shapes, output, dtype="float32", skip_defects=True)  # units may differ from file to file
    skipped = {name for name, _ in done.skipped}
    kept = [item for item in shapes.items if item.name not in skipped]
    notes = [
        *shapes.notes,
        *lost_classes(shapes.items, kept, shapes.class_names),
        *copies.notes(kept, shapes.class_names),
    ]
    lacks = []
    if len({item.label for item in kept}) == 1:
        lacks.append("a second class")
    if all(item.split != "test" for item in kept):
        lacks.append("a test shape (two shapes of a class and --test-fraction above 0, or a folder test/)")
    return PreparedFiles(done.skipped, unread_kinds(folder), notes, lacks)


def describe_files(prepared: PreparedFiles) -> list[list[str]]:
    """Return what the user should know, as paragraphs of lines."""
    paragraphs = []
    if skipped := prepared.skipped:
        shown = [f"  {reason if name in reason else f'{name}: {reason}'}" for name, reason in skipped[:_LISTED]]
        more = [f"  and {len(skipped) - _LISTED:,} more"] if len(skipped) > _LISTED else []
        paragraphs.append([f"skipped {len(skipped):,} that cannot be used:", *shown, *more])
    if prepared.ignored:
        kinds = ", ".join(f"{name} ({count})" for name, count in prepared.ignored.most_common(_LISTED))
        remedy = advice(prepared.ignored)
        ignored = f"ignored files of other kinds: {kinds}; read are {' '.join(EXTENSIONS)}"
        paragraphs.append([ignored, remedy] if remedy else [ignored])
    paragraphs += ([f"note: {note}"] for note in prepared.notes)
    if prepared.lacks:
        paragraphs.append([f"to train a classifier on it, it lacks {' and '.join(prepared.lacks)}"])
    return paragraphs
