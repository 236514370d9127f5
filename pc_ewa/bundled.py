"""Files that are bundled with the package: configs, the furniture dataset of the tutorials, and a model trained on it.

In a wheel they are in `pc_ewa/bundled`. In a checkout they are the folders at its root.
"""

from __future__ import annotations  # as in package.py

from pathlib import Path

_PACKAGE = Path(__file__).parent


def checkout() -> Path | None:
    """Return the root of the checkout that contains this package. None means an installation from a wheel."""
    # site-packages may contain a stray pyproject.toml, but not also a folder "configs".
    root = _PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "configs").is_dir() else None


def bundled(name: str) -> Path:
    """Return the path of a bundled file or folder, such as "configs" or "datasets/sweethome3d"."""
    return (checkout() or _PACKAGE / "bundled") / name


def find_config(path: str | Path) -> Path | None:
    """Find a config: a file at `path`, else the bundled one of that name.

    "quickstart", "quickstart.yaml" and "configs/quickstart.yaml" all name the same config.

    Returns:
        The path of the file. None means that there is no such config.
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
