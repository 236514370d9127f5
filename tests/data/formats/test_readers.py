import logging
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shape_files import (
    CLOUDS,
    MESHES,
    OBJ,
    PCD,
    POINTS,
    POLYGONS,
    TRIANGLES,
    npy,
    pcd_binary,
    pcd_compressed,
    ply,
    rows,
    stl_ascii,
    stl_binary,
)

from pc_ewa.data.formats import pcd, readers
from pc_ewa.data.formats.readers import EXTENSIONS, Shape, read_shape
from pc_ewa.errors import DataError


@pytest.mark.parametrize("name", MESHES)
def test_meshes_keep_their_surface(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(MESHES[name])
    vertices, faces = read_shape(tmp_path / name)
    assert faces is not None
    np.testing.assert_array_equal(vertices[faces].astype(np.float32), POINTS[TRIANGLES])


@pytest.mark.parametrize("name", CLOUDS)
def test_clouds_keep_their_points(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(CLOUDS[name])
    vertices, faces = read_shape(tmp_path / name)
    assert faces is None
    if name.lower().endswith((".las", ".laz")):  # float64, with the place on the map
        np.testing.assert_allclose(
            vertices, np.round(POINTS.astype(float), 3) + np.array([500_000, 5_000_000, -10]), atol=1e-8
        )
        return
    np.testing.assert_array_equal(vertices.astype(np.float32), POINTS)


def test_every_extension_is_among_these_files() -> None:
    assert {Path(name).suffix.lower() for name in (*MESHES, *CLOUDS)} == set(EXTENSIONS)


def test_what_open3d_writes_is_what_it_was(tmp_path: Path) -> None:
    import open3d as o3d

    points = np.random.RandomState(0).normal(size=(500, 3)).astype(np.float32)
    points[100:200] = points[:100]  # something to compress
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points.astype(np.float64)))
    cloud.paint_uniform_color([1, 0, 0])
    mesh = o3d.geometry.TriangleMesh.create_torus(1, 0.3, 12, 8)
    mesh.compute_triangle_normals()
    for kind in ("pcd", "ply"):
        for ascii_, compressed in ((True, False), (False, False), (False, True)):
            path = tmp_path / f"cloud.{kind}"
            assert o3d.io.write_point_cloud(str(path), cloud, write_ascii=ascii_, compressed=compressed)
            np.testing.assert_allclose(read_shape(path).vertices, points, rtol=1e-5)  # text has 6 digits
    for kind, ascii_ in (("ply", True), ("ply", False), ("off", True), ("obj", True), ("stl", False)):
        path = tmp_path / f"mesh.{kind}"
        assert o3d.io.write_triangle_mesh(str(path), mesh, write_ascii=ascii_)
        vertices, faces = read_shape(path)
        expected = np.asarray(mesh.vertices)[np.asarray(mesh.triangles)]
        np.testing.assert_allclose(vertices[faces], expected, atol=1e-5)


def test_lzf_repeats_what_it_has_just_written() -> None:
    assert pcd.unpack_lzf(bytes([1, 65, 66, 7 << 5, 3, 1]), 14) == b"AB" * 7
    assert pcd.unpack_lzf(bytes([0, 65, 1 << 5, 0]), 4) == b"AAAA"
    for damaged in (bytes([1, 65]), bytes([0, 65, 32]), bytes([0, 65, 32, 1]), bytes([0, 65, 7 << 5, 255, 0])):
        with pytest.raises(ValueError, match="damaged"):
            pcd.unpack_lzf(damaged, 4)


def test_pcd_leaves_out_what_was_not_measured(tmp_path: Path) -> None:
    path = tmp_path / "organized.pcd"
    text = PCD.format(form="ascii").replace("POINTS 5\n", "").replace("WIDTH 5\nHEIGHT 1", "WIDTH 3\nHEIGHT 2")
    path.write_text(text + rows(more=" 0 0 0") + "nan nan nan 0 0 0\n")
    assert len(read_shape(path).vertices) == 5
    path.write_text(text + rows(more=" 0 0 0") + "nan 1 nan 0 0 0\n")
    with pytest.raises(DataError, match="nan among the coordinates"):
        read_shape(path)


PLY_VERTICES = "ply\nformat {} 1.0\nelement vertex {}\nproperty float x\nproperty float y\nproperty float z\n"
DEFECTS = [
    ("a.txt", b"", "no points"),
    ("a.txt", b"only words here\n", "no points.*only words here"),
    ("a.txt", b"1 2 3\n1 2\n", "line 2 does not begin with x, y and z"),
    ("a.txt", b"1 2 3\n4 5 6 7\n", "line 2 has 4 columns, the first 3"),
    ("a.txt", b"1,,3\n", "line 1 does not begin"),
    ("a.txt", b"0,5;1,2;3,4\n", "with decimal points: '0,5;1,2;3,4'"),
    ("a.txt", b"0,5 1,2 3,4\n", "with decimal points"),
    ("a.txt", b"1 2 inf\n", "inf among the coordinates"),
    ("a.txt", b"3\n1 2 3\n4 5 6\n", "claims 3 points, but it has 2"),
    ("a.txt", "1 2 3\n".encode("utf-16-le"), "bytes of zero"),
    ("a.npy", npy(np.zeros((0, 3))), "no points"),
    ("a.npy", npy(np.zeros(6)), r"shape \(6,\); expected"),
    ("a.npy", npy(np.zeros((6, 2))), r"shape \(6, 2\); expected"),
    ("a.npy", npy(np.full((1, 3), np.nan)), "nan among"),
    ("a.npy", npy(np.zeros((2, 3), "S3")), "no NPY header of an array of numbers"),
    ("a.npy", npy(np.zeros((2, 3), [("x", "f4")])), "no NPY header of an array of numbers"),
    ("a.npy", npy(np.zeros((2, 3), object)), "no NPY header of an array of numbers"),
    ("a.npy", npy(np.zeros((2, 3)))[:-1], "ends early"),
    ("a.npy", npy(np.zeros((2, 3))).replace(b"(2, 3)", b"(" + b"9" * 18 + b", 3)"), "ends early"),
    ("a.npy", npy(np.zeros((2, 3))).replace(b"(2, 3)", b"(0, " + b"9" * 30 + b")"), "a.npy"),
    ("a.ply", b"ply\n", "no PLY header"),
    ("a.ply", PLY_VERTICES.format("ascii", 0).encode() + b"end_header\n", "no points"),
    ("a.ply", PLY_VERTICES.format("ascii", 2).encode() + b"end_header\n1 2 3\n", "ends early"),
    ("a.ply", PLY_VERTICES.format("binary_little_endian", 10**18).encode() + b"end_header\n1 2 3", "ends early"),
    ("a.ply", PLY_VERTICES.format("morse", 1).encode() + b"end_header\n1 2 3", "unknown format 'morse'"),
    ("a.ply", PLY_VERTICES.format("ascii", 1).encode() + b"property half w\nend_header\n1 2 3", "unknown type 'half'"),
    ("a.ply", PLY_VERTICES.format("ascii", 1).encode() + b"hello\nend_header\n1 2 3", "'hello' that means nothing"),
    ("a.ply", b"ply\nformat ascii 1.0\nelement vertex 1\nproperty int x\nend_header\n1\n", "x, y and z"),
    ("a.ply", ply("ascii", [[0, 1, 5]]), "a face has vertex 5"),
    ("a.ply", ply("binary_big_endian", [[0, 1, -1]]), "a face has vertex -1"),
    ("a.ply", ply("binary_little_endian", POLYGONS)[:-1], "ends early"),
    ("a.ply", ply("ascii", POLYGONS)[:-3], "ends early"),
    ("a.ply", ply("ascii", POLYGONS).replace(b"\n3 2 3 4", b"\n-3 2 3 4"), "a list of -3 entries"),
    ("a.ply", ply("ascii", POLYGONS).replace(b"\n4 0 1", b"\n1e9 0 1"), r"a list of 1e\+09 entries"),
    ("a.pcd", b"VERSION 0.7\n", "no PCD header"),
    ("a.pcd", pcd_binary()[:-1], "does not hold the 5 points"),
    ("a.pcd", pcd_binary().replace(b"POINTS 5", b"POINTS 999999999999"), "does not hold"),
    ("a.pcd", pcd_binary().replace(b"POINTS 5", b"POINTS 0"), "no points"),
    ("a.pcd", pcd_binary().replace(b"COUNT 1 1 1 2", b"COUNT 1 1 1 " + b"9" * 30), "does not hold"),
    ("a.pcd", pcd_binary().replace(b"SIZE 4", b"SIZE 3"), "SIZE, TYPE or COUNT"),
    ("a.pcd", pcd_binary().replace(b"FIELDS x y z", b"FIELDS x y y"), "expected x, y and z"),
    ("a.pcd", pcd_binary().replace(b"binary", b"zip"), "DATA is 'zip'"),
    ("a.pcd", pcd_compressed()[:-1], "ends early"),
    ("a.pcd", pcd_compressed().replace(b"POINTS 5", b"POINTS 99999999"), "not what the header claims"),
    ("a.off", b"OFF BINARY\n", "not OFF"),
    ("a.off", b"", "not OFF"),
    ("a.off", b"OFF\n", "ends early"),
    ("a.off", b"OFF\n0 0 0\n", "no points"),
    ("a.off", b"OFF\n999999999999 9 0\n0 0 0\n", "ends early"),
    ("a.off", b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1\n", "not whole"),
    ("a.off", b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 3\n", "a face has vertex 3"),
    ("a.obj", b"", "no points"),
    ("a.obj", b"v 1 2\n", "a vertex has 2 coordinates"),
    ("a.obj", b"v 1 2 three\n", "could not convert"),
    ("a.obj", b"v 1 2 " + b"w" * 9999, "could not convert"),
    ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 0 1 2\n", "counts from 1"),
    ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 -4\n", "a face has vertex -1"),
    ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 " + b"9" * 40, "a.obj"),
    ("a.stl", b"", "not STL"),
    ("a.stl", stl_binary()[:-1], "ends early"),
    ("a.stl", stl_ascii()[:-30], "ends early"),
    ("a.stl", bytes(80) + b"\xff\xff\xff\xff", "ends early"),
    ("a.stl", bytes(84), "no points"),
]


@pytest.mark.parametrize(("name", "data", "reason"), DEFECTS)
def test_a_defect_is_named_in_one_line(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=reason) as caught:
        read_shape(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "; repair, replace or remove it" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(tmp_path)) + 300


def test_missing_unreadable_and_enormous_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.ply").mkdir()
    for name in ("missing.ply", "folder.ply"):
        with pytest.raises(DataError, match=rf"cannot read .*{name}"):
            read_shape(tmp_path / name)
    for error, reason in (
        (PermissionError(13, "Permission denied"), "Permission denied; give"),
        (MemoryError(), "thin"),
    ):

        def refuse(path: Path, error: Exception = error) -> bytes:
            raise error

        monkeypatch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(DataError, match=reason):
            read_shape(tmp_path / "a.ply")


@pytest.mark.parametrize("name", sorted({**MESHES, **CLOUDS}))
def test_a_file_that_ends_early_is_refused_or_whole(tmp_path: Path, name: str) -> None:
    """Except in formats that tell neither their length nor their end: there it may be a line, or digits, short."""
    data = {**MESHES, **CLOUDS}[name]
    whole = len(data.rstrip()) if b"\xff\xfe" not in data else len(data)
    for end in range(0, whole - 12, 7):
        (tmp_path / name).write_bytes(data[:end])
        try:
            shape = read_shape(tmp_path / name)
        except DataError:
            continue
        assert Path(name).suffix.lower() in (".txt", ".xyz", ".csv", ".obj"), f"the first {end} bytes of {name}"
        assert len(shape.vertices) <= 5


def read_or_name(path: Path) -> Shape | None:
    """Read, or return None for a DataError that names the file."""
    try:
        return read_shape(path)
    except DataError as error:
        if str(path) not in str(error):
            raise AssertionError(f"{error} does not name the file") from error
        return None


@settings(deadline=None, max_examples=400)
@given(
    name=st.sampled_from(sorted({**MESHES, **CLOUDS})),
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.sampled_from(["put", "insert", "delete"]), st.binary(min_size=1, max_size=4)),
        min_size=1,
        max_size=6,
    ),
    as_kind=st.sampled_from(["", *EXTENSIONS]),
)
def test_any_damage_is_a_data_error_or_a_sound_shape(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    edits: list[tuple[float, str, bytes]],
    as_kind: str,
) -> None:
    data = bytearray({**MESHES, **CLOUDS}[name])
    for place, action, piece in edits:
        at = int(place * len(data))
        data[at : at + (len(piece) if action != "insert" else 0)] = b"" if action == "delete" else piece
    path = tmp_path_factory.getbasetemp() / f"damaged{as_kind or Path(name).suffix}"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shape = read_or_name(path)
    if shape is None:
        return
    vertices, faces = shape
    assert vertices.ndim == 2
    assert vertices.shape[1] == 3
    assert len(vertices) > 0
    assert np.isfinite(vertices).all()
    if faces is not None:
        assert faces.shape[1] == 3
        assert 0 <= faces.min() <= faces.max() < len(vertices)


@settings(deadline=None, max_examples=200)
@given(kind=st.sampled_from(EXTENSIONS), data=st.binary(max_size=300))
def test_garbage_is_a_data_error_or_a_sound_shape(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / f"garbage{kind}"
    path.write_bytes(data)
    shape = read_or_name(path)
    assert shape is None or len(shape.vertices) > 0


def test_claims_take_no_memory(tmp_path: Path) -> None:
    claims = {
        "a.ply": PLY_VERTICES.format("binary_little_endian", 2**40).encode() + b"end_header\n" + bytes(1000),
        "b.ply": ply("ascii", POLYGONS).replace(b"element face 2", b"element face 99999999999"),
        "c.ply": b"ply\nformat ascii 1.0\nelement face 9\nproperty list int int vertex_index\nend_header\n4000000000\n",
        "a.pcd": pcd_binary().replace(b"POINTS 5", b"POINTS 99999999999"),
        "b.pcd": pcd_compressed().replace(b"POINTS 5", b"POINTS 150000000"),
        "a.off": b"OFF\n9999999999 9999999999 0\n",
        "a.npy": npy(np.zeros((2, 3))).replace(b"(2, 3)", b"(99999999999, 3)"),
        "a.stl": bytes(80) + b"\xff\xff\xff\xff" + bytes(1000),
    }
    for name, data in claims.items():
        (tmp_path / name).write_bytes(data)
        tracemalloc.start()
        with pytest.raises(DataError):
            read_shape(tmp_path / name)
        assert tracemalloc.get_traced_memory()[1] < 2**20, name
        tracemalloc.stop()


def test_nothing_outside_is_opened_and_nothing_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "out.mtl").write_text("newmtl red\nmap_Kd secret.png\n")
    files = {
        "a.obj": OBJ.replace("../../outside.mtl", "out.mtl").replace("\n0 0 0\n", "\nv 0 0 0\n")
        + "call b.obj\ncsh -ls\n",
        "a.ply": ply("ascii", POLYGONS).decode().replace("comment", "comment TextureFile out.mtl\ncomment"),
    }
    opened = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path.name) or read_bytes(path))
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        monkeypatch.setattr("builtins.open", lambda *_: pytest.fail("opened another file"))
        with caplog.at_level(logging.DEBUG):
            assert readers.read_shape(tmp_path / name).faces is not None
        monkeypatch.undo()
        monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path.name) or read_bytes(path))
    assert opened == list(files)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
