"""docs/own-data.md: every command and all code of the page runs, in its order, on ten meshes."""

import csv
import re
import shlex
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from pc_ewa import cli
from pc_ewa.data.formats.readers import EXTENSIONS

REPOSITORY = Path(__file__).parent.parent
PAGE = (REPOSITORY / "docs" / "own-data.md").read_text()
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", PAGE, re.DOTALL)
TINY = (
    *("model.dim=12", "model.depth=2", "model.num_groups=8", "model.group_size=8", "model.encoder_width=8"),
    *("data.num_points=64", "train.steps=3", "train.batch_size=4", "device=cpu", "wandb.mode=disabled"),
)
BOX = [[0, 1, 3, 2], [4, 5, 7, 6], [0, 1, 5, 4], [2, 3, 7, 6], [0, 2, 6, 4], [1, 3, 7, 5]]
PYRAMID = [[0, 1, 3, 2], [0, 1, 4], [1, 3, 4], [3, 2, 4], [2, 0, 4]]


def write_mesh(path: Path, seed: int) -> None:
    """A box if the seed is even, else a pyramid, of some size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    corners = np.array([[i & 1, i >> 1 & 1, i >> 2] for i in range(8)], float)
    faces = BOX
    if seed % 2:
        corners, faces = np.vstack([corners[:4], [[0.5, 0.5, 1.5]]]), PYRAMID
    corners = corners * np.random.RandomState(seed).uniform(0.5, 2, 3)
    rows = "\n".join(" ".join(map(str, row)) for row in corners.tolist())
    if path.suffix == ".off":
        lines = "\n".join(f"{len(face)} {' '.join(map(str, face))}" for face in faces)
        path.write_text(f"OFF\n{len(corners)} {len(faces)} 0\n{rows}\n{lines}\n")
    elif path.suffix == ".obj":
        lines = "\n".join("f " + " ".join(str(corner + 1) for corner in face) for face in faces)
        path.write_text("v " + rows.replace("\n", "\nv ") + f"\n{lines}\n")
    else:
        lines = "\n".join(f"{len(face)} {' '.join(map(str, face))}" for face in faces)
        path.write_text(
            f"ply\nformat ascii 1.0\nelement vertex {len(corners)}\nproperty float x\nproperty float y\n"
            f"property float z\nelement face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
            f"{rows}\n{lines}\n"
        )


@pytest.fixture
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed in range(10):
        write_mesh(
            tmp_path / "scans" / ("box", "pyramid")[seed % 2] / f"{seed}{('.off', '.obj', '.ply')[seed % 3]}", seed
        )
    write_mesh(tmp_path / "new_scan.ply", 100)
    write_mesh(tmp_path / "new_scans" / "odd.off", 101)
    return tmp_path


def test_every_command_and_all_code_of_the_page_runs(scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[str] = []
    for kind, text in BLOCKS:
        if kind == "python":
            exec(compile(text, "own-data.md", "exec"), {})
            assert capsys.readouterr().out.split()[0] in ("box", "pyramid")
            continue
        for line in text.splitlines():
            program, command, *arguments = shlex.split(line, comments=True)
            assert program == "pc-ewa"
            if command == "export":  # half a minute, and run by its own tests
                if command in cli.COMMANDS:
                    import_module("pc_ewa.cli.export").create_parser().parse_intermixed_args(arguments)
                continue
            small = ["--points", "128"] if command == "prepare" else [*TINY] if command == "train" else []
            code = cli.main([command, *arguments, *small])
            err = capsys.readouterr().err
            assert code == 0, f"{line}: {err}"
            ran.append(command)
    assert {"prepare", "train", "evaluate", "predict", "compare"} <= set(ran)
    for file in ("mine.h5", "runs/own_data/summary.json", "wrong.csv", "answers.csv", "my_model/README.md"):
        assert (scans / file).is_file(), file
    with (scans / "answers.csv").open() as file:
        assert [row["file"] for row in csv.DictReader(file)] == ["new_scans/odd.off"]


def test_the_page_names_every_kind_of_file() -> None:
    named = re.search(r"`(\.ply[^`]+)`", PAGE)
    assert named
    assert named[1].split() == list(EXTENSIONS)


def test_the_config_has_a_comment_for_what_a_user_will_change() -> None:
    lines = (REPOSITORY / "configs" / "own_data.yaml").read_text().splitlines()
    assert len(lines) <= 16
    assert all("#" in line for line in lines if re.match(r"  (num_points|epochs|batch_size|lr)|ewa|augment", line))
