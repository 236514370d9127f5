"""One shape in every file format that is read, as bytes by the name of a file."""

import io
import struct

import numpy as np

POINTS = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0.5], [-2.5, 3, 1e-3]], np.float32)
TRIANGLES = [[0, 1, 2], [0, 2, 3], [2, 3, 4]]  # polygons 0 1 2 3 and 2 3 4

PLY = """ply
format {form} 1.0
comment caf\u00e9, as UTF-8
element vertex 5
property float x
property float y
property float z
property uchar red
element face {faces}
property list uchar int vertex_indices
end_header
"""
PCD = """# .PCD v0.7 - Point Cloud Data file format
VERSION 0.7
FIELDS x y z normal rgb
SIZE 4 4 4 4 4
TYPE F F F F U
COUNT 1 1 1 2 1
WIDTH 5
HEIGHT 1
VIEWPOINT 0 0 0 1 0 0 0
POINTS 5
DATA {form}
"""


def rows(separator: str = " ", more: str = "") -> str:
    return "".join(f"{x:.9g}{separator}{y:.9g}{separator}{z:.9g}{more}\n" for x, y, z in POINTS)


def ply(form: str, polygons: list[list[int]]) -> bytes:
    header = PLY.format(form=form, faces=len(polygons)).encode()
    if form == "ascii":
        faces = "".join(f"{len(p)} {' '.join(map(str, p))}\n" for p in polygons)
        return header + (rows(more=" 7") + faces).encode()
    order = ">" if "big" in form else "<"
    faces_ = b"".join(struct.pack(f"{order}B{len(p)}i", len(p), *p) for p in polygons)
    return header + b"".join(struct.pack(f"{order}3fB", *p, 7) for p in POINTS) + faces_


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def stl_binary() -> bytes:
    facets = [struct.pack("<12fH", 0, 0, 0, *POINTS[face].ravel(), 0) for face in TRIANGLES]
    return b"solid, and yet binary".ljust(80) + struct.pack("<I", len(facets)) + b"".join(facets)


def stl_ascii() -> bytes:
    text = "solid shape\n"
    for face in TRIANGLES:
        corners = "".join(f"      vertex {x:.9g} {y:.9g} {z:.9e}\n" for x, y, z in POINTS[face])
        text += f"  facet normal 0 0 1\n    outer loop\n{corners}    endloop\n  endfacet\n"
    return (text + "endsolid shape\n").encode()


def pcd_binary() -> bytes:
    return PCD.format(form="binary").encode() + b"".join(struct.pack("<5fI", *p, 0, 0, 9) for p in POINTS)


def lzf(data: bytes) -> bytes:
    """The dullest compression: everything as it is."""
    return b"".join(bytes([len(data[i : i + 32]) - 1]) + data[i : i + 32] for i in range(0, len(data), 32))


def pcd_compressed() -> bytes:
    fields = POINTS.T.tobytes() + bytes(4 * 2 * 5) + struct.pack("<5I", *[9] * 5)
    packed = lzf(fields)
    return PCD.format(form="binary_compressed").encode() + struct.pack("<II", len(packed), len(fields)) + packed


def las(form: str = "las", version: str = "1.2", points: int = 3) -> bytes:
    """Points of a laser scanner: whole numbers, with a scale and an offset."""
    import laspy

    header = laspy.LasHeader(point_format=points, version=version)
    header.scales, header.offsets = np.full(3, 1e-3), np.array([500_000, 5_000_000, -10])
    content = laspy.LasData(header)
    content.x, content.y, content.z = (POINTS + header.offsets).T
    file = io.BytesIO()
    content.write(file, do_compress=form == "laz")
    return file.getvalue()


POLYGONS = [[0, 1, 2, 3], [2, 3, 4]]
OBJ = f"""# shape
mtllib ../../outside.mtl
o caf\u00e9
{rows().replace(chr(10), chr(10) + "v ").removesuffix("v ")}vt 0 0
vn 0 0 1
usemtl \\
  red
f 1/1/1 2/1/1 3/1/1 4/1/1
f -3 -2//1 -1
"""
MESHES = {
    "ascii.ply": ply("ascii", POLYGONS),
    "little.ply": ply("binary_little_endian", POLYGONS),
    "big.PLY": ply("binary_big_endian", POLYGONS),
    "triangles.ply": ply("binary_little_endian", TRIANGLES),
    "windows.ply": ply("ascii", POLYGONS).replace(b"\n", b"\r\n"),
    "plain.off": f"OFF\n# counts\n5 2 0\n\n{rows()}4 0 1 2 3\n3 2 3 4 255 0 0\n".encode(),
    "glued.off": f"OFF5 2 0\n{rows()}4 0 1 2 3\n3 2 3 4\n".encode(),
    "normals.off": f"CNOFF\n5 2\n{rows(more=' 0 0 1 9 9 9 9')}4 0 1 2 3\n3 2 3 4\n".encode(),
    "shape.obj": OBJ.replace("\n0 0 0\n", "\nv 0 0 0\n").encode(),
    "binary.stl": stl_binary(),
    "ascii.stl": stl_ascii(),
}
CLOUDS = {
    "cloud.ply": ply("binary_little_endian", []),
    "cloud.obj": ("v " + rows().replace("\n", "\nv ").removesuffix("v ")).encode(),
    "cloud.off": f"OFF 5 0 0\n{rows()}".encode(),
    "plain.xyz": rows().encode(),
    "commas.txt": ("x,y,z,nx\n" + rows(",", ",0.5")).encode(),
    "quoted.csv": ('"x","y","z","name"\n' + "".join(f'"{row}","chair, red"\n' for row in rows('","').split())).encode(),
    "utf16.csv": ("X;Y;Z\r\n" + rows(";")).encode("utf-16"),
    "reordered.csv": ("name,Z,Y,X\n" + "".join(f"a b,{z:.9g},{y:.9g},{x:.9g}\n" for x, y, z in POINTS)).encode(),
    "scan.las": las(),
    "scan14.las": las("las", "1.4", 6),
    "scan.laz": las("laz"),
    "scan14.laz": las("laz", "1.4", 6),
    "commas_and_spaces.txt": rows(", ").encode(),
    "semicolons.TXT": b"\xef\xbb\xbf" + ("// made by\n\n# me\n" + rows(";", ";chair")).encode(),
    "tabs.xyz": rows("\t").replace("\n", "\r\n").encode(),
    "counted.txt": ("5\n" + rows(more=" label")).encode(),
    "plain.npy": npy(POINTS),
    "columns.npy": npy(np.asfortranarray(np.hstack([POINTS, POINTS]).astype(">f8"))),
    "ascii.pcd": (PCD.format(form="ascii") + rows(more=" nan 0 4.2e9")).encode(),
    "binary.pcd": pcd_binary(),
    "compressed.pcd": pcd_compressed(),
}
