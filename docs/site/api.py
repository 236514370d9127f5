"""The pages of the API, from the source alone: nothing is imported, so that the site needs no torch."""

from __future__ import annotations

import ast
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PACKAGE = REPOSITORY / "pc_ewa"
# Packages and modules whose names others use; the rest is for who changes pc-ewa.
ROOMS = (
    *("ewa", "ops", "models", "inference", "export", "data", "integrations", "config", "train", "eval", "compare"),
    *("viz", "report", "trackers", "errors"),
)


def pages() -> dict[str, str]:
    """Return the Markdown of each page, by its path on the site."""
    return {"api/index.md": _index()} | {f"api/{room}.md": _room(room) for room in ROOMS}


def public_names(path: Path) -> list[str]:
    """Return the names in `__all__` of a module, or else its classes and functions without an underscore."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__":
            return list(ast.literal_eval(node.value))
    kinds = (ast.ClassDef, ast.FunctionDef)
    return [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def homes() -> dict[str, str]:
    """Return the room of each public name of `pc_ewa` itself."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    assigned = {getattr(node.targets[0], "id", ""): node.value for node in tree.body if isinstance(node, ast.Assign)}
    table = ast.literal_eval(assigned["_HOMES"])
    return {name: room for room, names in table.items() for name in names}


def modules(room: str) -> list[str]:
    """Return the modules of a room whose names are public, by their dotted name."""
    path = PACKAGE / room
    if not path.is_dir():
        return [room]
    if public_names(path / "__init__.py"):
        return [room]
    return [f"{room}.{module.stem}" for module in sorted(path.glob("[!_]*.py")) if public_names(module)]


def _index() -> str:
    known, names = homes(), public_names(PACKAGE / "__init__.py")
    rows = []
    for name in names:
        room = known.get(name, name)
        target = f"{room}.md#pc_ewa.{room}.{name}" if name in known else f"{room}.md"
        rows.append(f"| [`pc_ewa.{name}`]({target}) | {_summary(room, name) if name in known else _docstring(room)} |")
    rooms = [f"| [`pc_ewa.{room}`]({room}.md) | {_docstring(room)} |" for room in ROOMS]
    head = "| name | |\n|---|---|\n"
    return (
        "# API\n\nImporting `pc_ewa` loads nothing; a name brings its module, and torch, when it is first used.\n\n"
        + head
        + "\n".join(rows)
        + "\n\n## Rooms\n\n"
        + head
        + "\n".join(rooms)
        + "\n"
    )


def _room(room: str) -> str:
    lines = [f"# pc_ewa.{room}", "", _docstring(room, whole=True), ""]
    for module in modules(room):
        for name in public_names(_file(module)):
            lines += [f"::: pc_ewa.{module}.{name}", ""]
    return "\n".join(lines)


def _file(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _docstring(room: str, whole: bool = False) -> str:
    text = ast.get_docstring(ast.parse(_file(room).read_text(encoding="utf-8"))) or ""
    return text.partition("\n\nArgs:")[0] if whole else text.splitlines()[0]


def _summary(room: str, name: str) -> str:
    """Return the first line of the docstring of a name, wherever in the room it is defined."""
    for path in [_file(room), *sorted((PACKAGE / room).rglob("*.py"))]:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
                doc = ast.get_docstring(node)
                if doc:
                    return doc.splitlines()[0].replace("|", "\\|")
    return ""
