"""The part labels of each class, for part segmentation."""

from collections.abc import Sequence

import numpy as np

from pc_ewa.data import DATASETS
from pc_ewa.data.clouds import Clouds
from pc_ewa.errors import DataError

_ROWS = 1024  # shapes in memory at a time


def parts_of_classes(splits: Sequence[Clouds]) -> list[list[int]]:
    """Return the part labels of each class: the published ones, else those that occur in any of the splits.

    Raises:
        DataError: a dataset without part labels, or a class without a shape.
    """
    first = splits[0]
    published = DATASETS[first.name].parts if first.name in DATASETS else {}
    if published and first.class_names == tuple(published):
        return [list(parts) for parts in published.values()]
    counts = np.zeros((first.num_classes, 256), dtype=np.int64)
    for clouds in splits:
        labels = clouds.labels.cpu().numpy()
        for start in range(0, len(clouds), _ROWS):
            chunk = range(start, min(start + _ROWS, len(clouds)))
            parts = clouds.part_labels(chunk).cpu().numpy()
            # Not `counts[...] += 1`, which counts repeated indices once.
            np.add.at(counts, (labels[chunk.start : chunk.stop, None], parts), 1)
    absent = [name for name, row in zip(first.class_names, counts, strict=True) if not row.any()]
    if absent:
        raise DataError(f"{first.name}: no shape of class {absent[0]}, so its parts are unknown; remove the class")
    return [np.flatnonzero(row).tolist() for row in counts]
