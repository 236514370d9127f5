"""Puts into wheels what is not Python: compiled kernels, configs and bundled data; pyproject.toml has the rest.

Without a C++ compiler (CXX=/none hides it) the wheel is for any platform, and compiles the kernels where it is used.
"""

import runpy
import shutil
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

# By path: importing the package would need torch, which is not there when a wheel is built.
COMPILED = runpy.run_path("pc_ewa/ops/compiled.py")
# What pc_ewa/bundled.py finds at the root of a checkout, and in pc_ewa/bundled of a wheel.
BUNDLED = (
    *(
        "configs/**/*.yaml",
        "configs/schema/*.json",
        "datasets/sweethome3d/*.md",
        "datasets/sweethome3d/sweethome3d_1024.h5",
    ),
    *("models/**/*.json", "models/**/*.safetensors", "models/**/*.md"),
)


class BuildComplete(build_py):
    """Copy the package; then bundled files, and kernels compiled for each level of x86."""

    def run(self) -> None:
        """Leave an editable install as it is: it compiles for its own CPU, and finds the files in the checkout."""
        super().run()
        if not self.editable_mode:
            copy_bundled(Path(self.build_lib) / "pc_ewa/bundled")
            for target, scalar, level in libraries(Path(self.build_lib)):
                target.parent.mkdir(parents=True, exist_ok=True)
                COMPILED["compile_library"](scalar, COMPILED["find_compiler"](), target, level)


class PlatformWheel(bdist_wheel):
    """Name the platform that the kernels are for, but no version of Python: they do not use it."""

    def get_tag(self) -> tuple[str, str, str]:
        """py3-none-any, or the platform in place of any."""
        return ("py3", "none", super().get_tag()[2])


class MaybeCompiled(Distribution):
    """A package for one platform if there are kernels in it."""

    def has_ext_modules(self) -> bool:
        """Whether the wheel is not pure Python."""
        return bool(libraries(Path()))


def copy_bundled(folder: Path) -> None:
    """Copy configs and bundled data to a folder, which is emptied first: an earlier build may have left others."""
    shutil.rmtree(folder, ignore_errors=True)
    for pattern in BUNDLED:
        for path in Path().glob(pattern):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / path)


def libraries(folder: Path) -> list[tuple[Path, str, str]]:
    """Where each library goes, its type of coordinate and its level; none without a compiler or on another CPU."""
    try:
        COMPILED["find_compiler"]()
    except COMPILED["UnavailableError"]:
        return []
    if not COMPILED["cpu_flags"]() & COMPILED["LEVELS"]["x86-64"]:
        return []
    built = []
    for scalar in ("float", "double"):
        for level in COMPILED["LEVELS"]:
            name = COMPILED["prebuilt_path"](scalar, level).name
            built.append((folder / "pc_ewa/ops/prebuilt" / name, scalar, level))
    return built


setup(distclass=MaybeCompiled, cmdclass={"build_py": BuildComplete, "bdist_wheel": PlatformWheel})
