"""Puts compiled kernels into wheels; everything else about the package is in pyproject.toml.

Without a C++ compiler the wheel is pure Python, and compiles the kernels where it is used.
"""

import runpy
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

# By path: importing the package would need torch, which is not there when a wheel is built.
COMPILED = runpy.run_path("pc_ewa/ops/compiled.py")


class BuildWithKernels(build_py):
    """Copy the package, then compile the kernels beside it for each level of x86."""

    def run(self) -> None:
        """Leave an editable install as it is: it compiles for its own CPU."""
        super().run()
        if not self.editable_mode:
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


setup(distclass=MaybeCompiled, cmdclass={"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel})
