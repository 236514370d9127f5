"""Files that come with the package: configs of the recipes, the furniture of the tutorials, a model of it.

A wheel holds them in `pc_ewa/bundled`. In a checkout they are the folders at its root.
"""

from __future__ import annotations  # as in package.py

from pathlib import Path

_PACKAGE = Path(__file__).parent


def checkout() -> Path | None:
    """Return the root of the checkout that this package is part of, or None if it was installed from a wheel."""
    root = _PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "configs").is_dir() else None


def bundled(name: str) -> Path:
    """Return the path of a bundled file or folder, such as "configs" or "datasets/sweethome3d"."""
    return (checkout() or _PACKAGE / "bundled") / name


def find_config(path: str | Path) -> Path | None:
    """Find a config: a file at `path`, else the bundled one of that name.

    "quickstart", "quickstart.yaml" and "configs/quickstart.yaml" all name the same one.

    Returns:
        The path of the file, or None if there is neither.
    """
    path = Path(path)
    if path.is_file():
        return path
    name = path.as_posix().removeprefix("configs/").removesuffix(".yaml")
    return bundled_configs().get(name)


def bundled_configs() -> dict[str, Path]:
    """Return the bundled configs by name: "quickstart", "finetune/modelnet40"."""
    folder = bundled("configs")
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def bundled_models() -> dict[str, Path]:
    """Return the folders of the bundled models by name: "furniture"."""
    return {path.name: path for path in sorted(bundled("models").iterdir()) if path.is_dir()}
