"""The bundled data is what its card and its attribution say."""

import hashlib
import re
from collections import Counter
from pathlib import Path

import h5py
import pytest

from pc_ewa.data import MissingSplitError, load_dataset

DATASETS = Path(__file__).parents[3] / "datasets"
HOME = DATASETS / "sweethome3d"
FILE = HOME / "sweethome3d_1024.h5"


def test_counts_and_coordinates() -> None:
    train, test = (load_dataset("sweethome3d", split, root=DATASETS) for split in ("train", "test"))
    assert (len(train), len(test), train.num_classes, train.num_points) == (459, 154, 18, 1024)
    assert (train.class_names, train.up_axis) == (test.class_names, "z")
    for clouds in (train, test):
        points, labels = clouds.batch(range(len(clouds)))
        radii = points.norm(dim=2).amax(1)
        assert points.isfinite().all()
        assert radii.min() > 0.87, "a cloud far smaller than the unit sphere"
        assert radii.max() < 1.001
        assert labels.bincount().min() >= 5
    with pytest.raises(MissingSplitError):
        load_dataset("sweethome3d", "val", root=DATASETS)


def test_card_has_the_checksum_and_the_counts() -> None:
    card = (HOME / "README.md").read_text()
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() in card
    train, test = (load_dataset("sweethome3d", split, root=DATASETS) for split in ("train", "test"))
    for label, name in enumerate(train.class_names):
        counts = [int((clouds.labels == label).sum()) for clouds in (train, test)]
        assert f"| {label} | {name} | {counts[0]} | {counts[1]} |" in card


def test_every_shape_is_attributed_with_its_creator_and_licence() -> None:
    with h5py.File(FILE) as file:
        columns = [file[key].asstr()[:] for key in ("licence", "creator", "name")]
    stored = Counter(zip(*columns, strict=True))
    listed: Counter[tuple[str, str, str]] = Counter()
    for section in (HOME / "ATTRIBUTION.md").read_text().split("\n## ")[1:]:
        licence = section.split(":")[0]
        text = " ".join(section.split())
        for creator, total, models in re.findall(r"- \*\*(.+?)\*\* \((\d+)\): (.+?)(?= - \*\*|$)", text):
            entries = [re.fullmatch(r"(.+?)(?: \u00d7(\d+))?", model) for model in models.split("; ")]
            counts = {entry[1]: int(entry[2] or 1) for entry in entries if entry}
            assert sum(counts.values()) == int(total)
            listed.update({(licence, creator, name): count for name, count in counts.items()})
    assert listed == stored
    assert listed.total() == 613


@pytest.mark.parametrize("name", ["__init__.py", "sweethome3d/__init__.py"])
def test_the_data_folder_is_no_package_that_could_hide_hugging_faces(name: str) -> None:
    assert not (DATASETS / name).exists()
