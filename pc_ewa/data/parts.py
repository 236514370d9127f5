"""Which parts the shapes of each class have."""

from collections.abc import Sequence

import numpy as np

from pc_ewa.data.clouds import Clouds
from pc_ewa.data.shapenetpart import CATEGORIES, NAME, PARTS
from pc_ewa.errors import DataError


def parts_of_classes(splits: Sequence[Clouds]) -> list[list[int]]:
    """Return the parts of each class: for ShapeNetPart the published ones, else those that occur in any of the splits.

    Raises:
        DataError: a dataset without parts, or a class whose shapes have none because there are no shapes.
    """
    first = splits[0]
    if first.name == NAME and first.class_names == tuple(CATEGORIES):
        return [list(PARTS[category]) for category in CATEGORIES]
    counts = np.zeros((first.num_classes, 256), dtype=np.int64)
    for clouds in splits:
        labels = clouds.labels.cpu().numpy()
        for start in range(0, len(clouds), 1024):
            chunk = range(start, min(start + 1024, len(clouds)))
            parts = clouds.part_labels(chunk).cpu().numpy()
            np.add.at(counts, (labels[chunk.start : chunk.stop, None], parts), 1)
    absent = [name for name, row in zip(first.class_names, counts, strict=True) if not row.any()]
    if absent:
        raise DataError(f"{first.name}: no shape of class {absent[0]}, so its parts are unknown; remove the class")
    return [np.flatnonzero(row).tolist() for row in counts]
