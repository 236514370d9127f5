"""The supported file formats, the extra that each needs, and advice to convert the unsupported ones."""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from pc_ewa.data.formats.readers import EXTENSIONS
from pc_ewa.package import OPTIONAL, missing_package

# The packages that a format needs in addition to the extra "data". pc_ewa.package has the extra of each package.
PACKAGES = {".las": ("laspy", "lazrs"), ".laz": ("laspy", "lazrs")}
EXTRAS = {kind: OPTIONAL[PACKAGES[kind][0]] if kind in PACKAGES else None for kind in EXTENSIONS}

_MESH = "export it as .ply or .obj, with Blender for one"
_BY_TRIMESH = (
    "pip install trimesh networkx lxml pycollada; python -c 'import sys, trimesh; "
    'trimesh.load_scene(sys.argv[1]).to_mesh().export(sys.argv[1] + ".ply")\' FILE makes a .ply of it'
)
_CAD = "export it as .stl or .obj from a CAD program"
_CLOUD = "export it as .ply or .las, with CloudCompare for one"
_ARRAY = "store its array of points as .npy, with numpy.save"
# Unsupported formats, each with a way to convert a file. trimesh 5.2 reads the first four, but it silently omits what
# it does not support, such as triangle fans in glTF, and it unpacks an archive of any size.
CONVERT = {
    **dict.fromkeys((".glb", ".gltf", ".3mf", ".dae"), _BY_TRIMESH),
    **dict.fromkeys((".fbx", ".blend", ".usd", ".usda", ".usdc", ".usdz", ".wrl", ".x3d", ".3ds", ".abc"), _MESH),
    **dict.fromkeys((".step", ".stp", ".iges", ".igs", ".ifc", ".brep"), _CAD),
    **dict.fromkeys((".e57", ".ptx", ".rcp", ".rcs", ".copc"), _CLOUD),
    **dict.fromkeys((".npz", ".mat", ".pkl", ".pt", ".pth"), _ARRAY),
}


def refuse_unreadable(paths: Iterable[Path]) -> None:
    """Refuse files whose reader needs a missing package, before the first of them is read.

    Raises:
        MissingPackageError: the message names the format, the package and the extra.
    """
    for kind in sorted({path.suffix.lower() for path in paths} & PACKAGES.keys()):
        for package in PACKAGES[kind]:
            if find_spec(package) is None:
                error = ModuleNotFoundError(name=package)
                raise missing_package(error, f"reading {kind} files") or error


def advice(names: Iterable[str]) -> str:
    """Return advice to convert unsupported files, given their names or extensions; "" if there is none.

    Example:
        >>> advice(["chair.step", "notes.md"])
        '.step is not read: export it as .stl or .obj from a CAD program'
    """
    by_remedy: dict[str, list[str]] = {}
    for kind in sorted({Path(f"_{name}").suffix.lower() for name in names} & CONVERT.keys()):
        by_remedy.setdefault(CONVERT[kind], []).append(kind)
    return "; ".join(
        f"{', '.join(kinds)} {'is' if len(kinds) == 1 else 'are'} not read: {remedy}"
        for remedy, kinds in by_remedy.items()
    )
