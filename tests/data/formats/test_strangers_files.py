"""Files as strangers have them: read as they are meant, or refused, but never read as something else."""

import codecs
import sys
from pathlib import Path

import numpy as np
import pytest
from shape_files import CLOUDS, MESHES, PCD, POINTS, TRIANGLES, las, npy, ply, rows, stl_ascii, stl_binary

from pc_ewa.data.formats import kinds
from pc_ewa.data.formats.readers import EXTENSIONS, Shape, read_shape
from pc_ewa.errors import DataError
from pc_ewa.package import MissingPackageError

TEXTS = {
    name: data
    for name, data in {**MESHES, **CLOUDS}.items()
    if not data.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16)) and b"\0" not in data and name != "binary.pcd"
}


def read(folder: Path, name: str, data: str | bytes) -> Shape:
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return read_shape(folder / name)


def refused(folder: Path, name: str, data: str | bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        read(folder, name, data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rows_", [3, 4, 6, 7])
@pytest.mark.parametrize("kind", ["npy", "txt", "csv"])
def test_arrays_that_lie_on_their_side_are_refused(tmp_path: Path, kind: str, rows_: int) -> None:
    array = np.random.RandomState(0).normal(size=(rows_, 2048))
    text = "\n".join(("," if kind == "csv" else " ").join(map(str, row)) for row in array)
    refused(tmp_path, f"a.{kind}", npy(array) if kind == "npy" else text, "transpose it")
    upright = array.T if kind == "npy" else None
    if upright is not None:
        assert len(read(tmp_path, "b.npy", npy(upright)).vertices) == 2048


def test_other_shapes_of_arrays(tmp_path: Path) -> None:
    for shape in ((1, 50, 3), (1, 3, 50), (3, 8), (2, 50, 3), (50,), (50, 2)):
        refused(tmp_path, "a.npy", npy(np.zeros(shape)), "shape|transpose")
    for shape in ((3, 3), (3, 6), (1, 3), (2, 7), (20, 20), (50, 40)):
        assert len(read(tmp_path, "a.npy", npy(np.zeros(shape))).vertices) == shape[0]


@pytest.mark.parametrize(
    "text",
    [
        "index,x,y,z\n0,1,2,3\n1,4,5,6\n",
        "Z;Y;X\n3;2;1\n6;5;4\n",
        "r g b X Y Z\n9 9 9 1 2 3\n9 9 9 4 5 6\n",
        "# label x y z\n8 1 2 3\n8 4 5 6\n",
        "# columns: z y x\n3 2 1\n6 5 4\n",
        "//X Y Z R G B\n1 2 3 9 9 9\n4 5 6 9 9 9\n",
        "id\tpos_x\tpos_y\tpos_z\n7\t1\t2\t3\n7\t4\t5\t6\n",
        "X [m], Y [m], Z [m], d\n1,2,3,9\n4,5,6,9\n",
        "x,y,z,normal_x,normal_y,normal_z\n1,2,3,0,0,1\n4,5,6,0,0,1\n",
        '"name","x","y","z"\n"a, b","1","2","3"\n"c","4","5","6"\n',
        "class,part,room,x,y,z\na,b,c,1,2,3\na,b,c,4,5,6\n",
        "my scan of x and y\n1 2 3\n4 5 6\n",
        "a b c\n1 2 3\n4 5 6\n",
    ],
)
def test_a_header_tells_the_columns(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, "a.csv", text).vertices.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    "text",
    [
        "x,y,z\n0,1,2,3\n1,4,5,6\n",  # as R writes names of rows
        "index,px,py,pz\n0,1,2,3\n1,4,5,6\n",
        "x,y,x,y\n1,2,3,4\n",
        "i,x,y,z,w\n1,2,3,4\n",
        "x,y\n1,2,3\n4,5,6\n,\n",
        'x,y,z\n"1,2,3\n4,5",6,7\n',
        '"0,1";"0,2";"0,3"\n',
    ],
)
def test_columns_that_a_header_does_not_tell_are_refused(tmp_path: Path, text: str) -> None:
    refused(tmp_path, "a.csv", text, "header|line")


@pytest.mark.parametrize("name", sorted(TEXTS))
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_change_nothing(tmp_path: Path, name: str, encoding: str) -> None:
    plain, marked = (
        read(tmp_path, name, data) for data in (TEXTS[name], TEXTS[name].decode("latin-1").encode(encoding))
    )
    np.testing.assert_array_equal(plain.vertices, marked.vertices)
    assert (plain.faces is None) == (marked.faces is None)
    np.testing.assert_array_equal(plain.faces, marked.faces)


def test_marks_where_none_can_be(tmp_path: Path) -> None:
    for name in ("little.ply", "binary.stl", "binary.pcd"):
        refused(tmp_path, name, codecs.BOM_UTF8 + {**MESHES, **CLOUDS}[name], "mark|not STL")
    joined = b"v 0 0 0\n" + codecs.BOM_UTF8 + b"v 1 0 0\nv 0 1 0\n"
    assert len(read(tmp_path, "joined.obj", joined).vertices) == 3
    for kind in ("obj", "off", "xyz", "csv"):
        refused(tmp_path, f"a.{kind}", "0.1 0.2 0.3\r\n".encode("utf-16-le"), "bytes of zero")
    refused(tmp_path, "a.xyz", codecs.BOM_UTF16_LE + b"odd", "UTF-16")
    refused(tmp_path, "a.xyz", "see attached\nfile\n", "'see attached'")


TRIANGLE = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 5 5 5\nf 1 2 3\n"


def test_backslashes_in_obj(tmp_path: Path) -> None:
    assert read(tmp_path, "a.obj", "v 1 2 3.#QUOTE\nv 1 2 3#4\n").vertices.tolist() == [[1, 2, 3]] * 2
    for before in ("# from C:\\scans\\\n", "# C:\\\r\n", "vn 0 0 1 # C:\\\n", "#\\\n#\\\n"):
        vertices, faces = read(tmp_path, "a.obj", before + TRIANGLE)
        assert len(vertices) == 4
        assert faces.tolist() == [[0, 1, 2]]
    assert read(tmp_path, "a.obj", TRIANGLE.replace("f 1 2", "f 1 \\\n 2")).faces.tolist() == [[0, 1, 2]]
    for name in ("usemtl a\\\n", "mtllib C:\\x\\\n", "g C:\\\n", "o \\\n"):
        refused(tmp_path, "a.obj", name + TRIANGLE, "remove the backslash")


def ply_with(elements: str, body: str) -> str:
    properties = "property float x\nproperty float y\nproperty float z\n"
    points = "0 0 0\n1 0 0\n0 1 0\n1 1 0\n0 2 0\n"
    return f"ply\nformat ascii 1.0\nelement vertex 5\n{properties}{elements}end_header\n{points}{body}"


def test_triangle_strips(tmp_path: Path) -> None:
    strips = "element tristrips {}\nproperty list int int vertex_indices\n"
    faces = "element face 1\nproperty list uchar int vertex_indices\n"
    expected = {
        "4 0 1 2 3\n": [[0, 1, 2], [2, 1, 3]],
        "9 0 1 2 3 -1 2 3 4 -1\n": [[0, 1, 2], [2, 1, 3], [2, 3, 4]],
        "7 -1 -1 0 1 -1 2 3\n": None,
        "0\n": None,
    }
    for body, triangles in expected.items():
        found = read(tmp_path, "a.ply", ply_with(strips.format(1), body)).faces
        assert (found if found is None else found.tolist()) == triangles
    two = read(tmp_path, "a.ply", ply_with(strips.format(2) + faces, "3 0 1 2\n3 1 2 3\n3 2 3 4\n")).faces
    assert two.tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
    refused(tmp_path, "a.ply", ply_with(strips.format(1), "4 0 1 2 9\n"), "vertex 9")
    refused(tmp_path, "a.ply", ply_with(strips.format(1), "4 0 1.5 2 3\n"), "whole number")


@pytest.mark.parametrize(
    ("elements", "body"),
    [
        ("element face 1\nproperty list uchar int corners\n", "3 0 1 2\n"),
        ("element face 1\nproperty int a\n", "3\n"),
        ("element face 1\nproperty list uchar int vertex_indices\n" * 2, "3 0 1 2\n3 0 1 2\n"),
        ("element triangles 1\nproperty list uchar int a\n", "3 0 1 2\n"),
        ("element cells 1\nproperty list uchar int vertex_indices\n", "3 0 1 2\n"),
        ("element tristrips 1\nproperty list int int a\n", "3 0 1 2\n"),
        ("element face 1\nproperty list uchar int vertex_index\nproperty list uchar int vertex_indices\n", "0 0\n"),
        ("element face 1\nproperty list uchar float vertex_index\n", "3 0 1 1.5\n"),
        ("element face 1\nproperty list uchar float vertex_index\n", "3 0 1 nan\n"),
    ],
)
def test_faces_are_never_dropped(tmp_path: Path, elements: str, body: str) -> None:
    refused(tmp_path, "a.ply", ply_with(elements, body), "element|more than once|whole number")


def test_lists_that_are_no_faces_are_left_alone(tmp_path: Path) -> None:
    range_image = "element range_grid 2\nproperty list uchar int vertex_indices\n"
    assert read(tmp_path, "a.ply", ply_with(range_image, "1 0\n0\n")).faces is None
    texture = "element face 1\nproperty list uchar int vertex_indices\nproperty list uchar float texcoord\n"
    assert read(tmp_path, "a.ply", ply_with(texture, "3 0 1 2 6 0 0 1 0 1 1\n")).faces.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    "word", ["-nan(ind)", "1.#QNAN", "-1.#IND00", "1.#INF", "-1.#INF000", "nan(snan)", "NaNQ", "1.#J", "nan(0x8000)"]
)
def test_windows_spellings_of_nan(tmp_path: Path, word: str) -> None:
    files = {
        "a.ply": ply("ascii", TRIANGLES).decode().replace(" 7\n", f" {word}\n"),
        "a.pcd": PCD.format(form="ascii") + rows(more=f" {word} 0 4"),
        "a.xyz": rows(more=f" {word}"),
        "a.stl": stl_ascii().decode().replace("normal 0 0 1", f"normal {word} {word} {word}"),
        "a.off": "CNOFF\n5 1\n" + rows(more=f" {word}") + "3 0 1 2\n",
        "a.obj": "".join(f"v {row} {word}\nvn {word} 0 0\n" for row in rows().splitlines()),
    }
    for name, text in files.items():
        points = read(tmp_path, name, text).vertices.astype(np.float32)
        np.testing.assert_array_equal(np.unique(points, axis=0), np.unique(POINTS, axis=0))
        refused(tmp_path, name, text.replace("-2.5", word), "among the coordinates")


@pytest.mark.parametrize(
    "name", ["vertex part", "facet", "endfacet part", "endsolid", "facet normal 0 0 1", "a\nsolid b", "outer loop", ""]
)
def test_names_in_stl(tmp_path: Path, name: str) -> None:
    for blanks in ("", "  ", "\n\n\t", "\ufeff", "\ufeff "):
        text = blanks + stl_ascii().decode().replace("solid shape", f"solid {name}".rstrip())
        vertices, faces = read(tmp_path, "a.stl", text)
        np.testing.assert_array_equal(vertices[faces].astype(np.float32), POINTS[TRIANGLES])


def test_facets_of_stl_are_whole(tmp_path: Path) -> None:
    text = stl_ascii().decode()
    assert len(read(tmp_path, "a.stl", " ".join(text.split())).faces) == 3
    assert len(read(tmp_path, "a.stl", text.replace("\n", "\r")).faces) == 3
    assert len(read(tmp_path, "a.stl", text + text).faces) == 6
    moved = text.split("\n")
    moved.insert(3, moved.pop(10))  # four corners here, two there
    refused(tmp_path, "a.stl", "\n".join(moved), "triangles")
    assert len(read(tmp_path, "b.stl", b" solid facet".ljust(80) + stl_binary()[80:]).faces) == 3


def test_las_is_refused_where_it_is_not_whole(tmp_path: Path) -> None:
    data = las()
    refused(tmp_path, "a.las", data[:-34], "early")  # one point of 34 bytes
    refused(tmp_path, "a.las", data.replace(b"LASF", b"LAZF"), "not LAS")
    many = bytearray(data)
    many[100:104] = b"\xff" * 4  # records
    refused(tmp_path, "a.las", bytes(many), "records")
    layers = bytearray(las("laz", "1.4", 6))
    layers[526] = 236  # a layer of 4 GB
    refused(tmp_path, "a.laz", bytes(layers), "chunks")
    chunks = bytearray(las("laz"))
    chunks[int.from_bytes(chunks[96:100], "little") + 2] = 9  # where its table begins
    refused(tmp_path, "a.laz", bytes(chunks), "chunks")


def test_every_kind_tells_the_extra_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuple(kinds.EXTRAS) == EXTENSIONS
    assert {kind for kind, extra in kinds.EXTRAS.items() if extra} == {".las", ".laz"} == set(kinds.PACKAGES)
    assert not set(kinds.CONVERT) & set(EXTENSIONS)
    paths = [Path("chair/a.LAS"), Path("chair/b.ply")]
    kinds.refuse_unreadable(paths)
    monkeypatch.setitem(sys.modules, "laspy", None)
    with pytest.raises(MissingPackageError, match=r"\.las files.*laspy"):
        kinds.refuse_unreadable(paths)
    kinds.refuse_unreadable(paths[1:])
    (tmp_path / "a.las").write_bytes(b"LASF")
    with pytest.raises(MissingPackageError, match="laspy"):
        read_shape(tmp_path / "a.las")


def test_advice_for_kinds_that_are_not_read() -> None:
    assert kinds.advice(["a.ply", "notes.md", ".md"]) == ""
    text = kinds.advice(["a.GLB", ".gltf", "b.step"])
    assert [word in text for word in (".glb", ".gltf", "trimesh", ".step", ".stl")] == [True] * 5
