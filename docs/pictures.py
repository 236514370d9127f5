"""Make the pictures of README.md and docs/: python docs/pictures.py [NAME ...] [--runs FOLDER] [--check].

Each is made from the bundled furniture by the command that stands beside it below. The two runs that some of them show
are trained where they are not there yet (`runs/quickstart_pretrain` and `runs/quickstart`, 3 minutes each on 2 cores);
Chromium photographs the report. A picture remembers its command, versions, date and a digest of the code that draws it;
--check says which ones are stale, and needs neither a run nor Chromium.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pc_ewa.errors import ConfigError, exit_on_error
from pc_ewa.package import version

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = "docs/pictures"
MOST_BYTES, MOST_BYTES_OF_ALL = 150_000, 600_000

# The code that a picture is made anew for.
_LOOKS = ("camera.py", "colours.py", "renderers/by_matplotlib.py", "renderers/sheet.py")
_PAGE = ("page.py", "page.css", "sections.py", "charts.py")
_LINKED = re.compile(r'!\[[^\]]*\]\(([^)\s]+)\)|<img\b[^>]*\bsrc="([^"]+)"')


class Picture(NamedTuple):
    """A picture of the docs.

    Attributes:
        command: makes it, in a folder that has `runs/`; what it writes last is the picture, or a page to photograph.
        sources: the code that it is made anew for.
        run: the config that is trained first.
        window: width and height of the part of a page that is photographed, in pixels.
    """

    command: str
    sources: tuple[str, ...]
    run: str | None = None
    window: tuple[int, int] | None = None


def _view(name: str, arguments: str, run: str | None = None, side: int = 240) -> Picture:
    command = f"pc-ewa show {name} {arguments} --side {side} --renderer matplotlib -o {name}.png"
    sources = (f"views/{name}.py", *_LOOKS)
    return Picture(command, tuple(f"pc_ewa/viz/{source}" for source in sources), run)


def _screenshot(width: int, height: int) -> Picture:
    sources = tuple(f"pc_ewa/report/{name}" for name in _PAGE)
    return Picture("pc-ewa report runs/quickstart -o report.html", sources, "quickstart", (width, height))


PICTURES = {
    "patches": _view("patches", "furniture shapes=[20]"),
    "experts": _view("experts", "quickstart shapes=[20] layers=1"),
    "reconstruction": _view("reconstruction", "runs/quickstart_pretrain shapes=[20]", "quickstart_pretrain"),
    "report_1280": _screenshot(1280, 900),
    "report_390": _screenshot(390, 900),
    "method": Picture("python docs/method_picture.py method.png", ("docs/method_picture.py",)),
}


@exit_on_error
def main(arguments: list[str] | None = None, root: Path = REPOSITORY) -> None:
    """Make pictures, or only say which are stale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)} (default: all)")
    parser.add_argument("--runs", default="runs", help="the folder of the runs (default: runs)")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if something is stale")
    options = parser.parse_args(arguments)
    if options.check:
        found = [*stale(root), *badly_linked(root)]
        print("\n".join(found) or "all pictures are fresh")
        sys.exit(1 if found else 0)
    wrong = [name for name in options.names if name not in PICTURES]
    if wrong:
        raise ConfigError(f"{wrong[0]} is not a picture; choose from {', '.join(PICTURES)}")
    for name in options.names or PICTURES:
        make(name, Path(options.runs).resolve(), root)
        print(f"{FOLDER}/{name}.png")


def make(name: str, runs: Path, root: Path = REPOSITORY) -> None:
    """Make one picture, small, with what it was made by."""
    picture = PICTURES[name]
    if picture.run and not (runs / picture.run / "summary.json").is_file():
        _call(f"pc-ewa train {picture.run} output={shlex.quote(str(runs / picture.run))}", root)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "runs").symlink_to(runs)
        (folder / "docs").symlink_to(root / "docs")
        _call(picture.command, folder)
        made = folder / picture.command.split()[-1]
        if picture.window:
            made = photograph(made, *picture.window)
        save_small(made, root / FOLDER / f"{name}.png", about(name, root))


def photograph(page: Path, width: int, height: int) -> Path:
    """Photograph the top of a page as a browser window of this size shows it.

    Raises:
        ConfigError: there is no Chromium.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise ConfigError("there is no Chromium to photograph the report with: apt-get install chromium")
    # A window of Chromium is at least 500 pixels wide, a frame in it may be as narrow as a phone.
    frame, picture = page.with_name("frame.html"), page.with_name("page.png")
    style = f"border:0;width:{width}px;height:{height}px"
    frame.write_text(f'<body style="margin:0"><iframe src="{page.name}" style="{style}"></iframe>')
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    flags += [f"--user-data-dir={page.parent / 'user'}", f"--window-size={max(width, 500)},{height}"]
    command = [chromium, *flags, "--virtual-time-budget=5000", f"--screenshot={picture}", str(frame)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    from PIL import Image

    with Image.open(picture) as image:
        image.crop((0, 0, width, height)).save(picture)
    return picture


def save_small(made: Path, path: Path, texts: dict[str, str]) -> None:
    """Write a PNG in 256 colours, with texts in it.

    Raises:
        ConfigError: it is too large for the repository all the same.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    path.parent.mkdir(exist_ok=True)
    with Image.open(made) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True, pnginfo=info)
    if path.stat().st_size > MOST_BYTES:
        raise ConfigError(f"{path} takes {path.stat().st_size:,} bytes of {MOST_BYTES:,}; choose a smaller --side")


def about(name: str, root: Path = REPOSITORY) -> dict[str, str]:
    """Return what a picture remembers."""
    import torch

    picture = PICTURES[name]
    return {
        "command": picture.command,
        "train": f"pc-ewa train {picture.run}" if picture.run else "",
        "digest": digest(picture.sources, root),
        "versions": f"pc-ewa {version()}, torch {torch.__version__}, Python {platform.python_version()}",
        "date": datetime.date.today().isoformat(),
    }


def stale(root: Path = REPOSITORY) -> Iterator[str]:
    """Say which pictures are missing, too large, or made by another command or other code than today's."""
    from PIL import Image

    sizes = 0
    for name, picture in PICTURES.items():
        path, again = root / FOLDER / f"{name}.png", f"run python docs/pictures.py {name}"
        if not path.is_file():
            yield f"{FOLDER}/{name}.png is not there: {again}"
            continue
        with Image.open(path) as image:
            texts = image.text  # type: ignore[attr-defined]
        if texts.get("command") != picture.command:
            yield f"{FOLDER}/{name}.png was made by another command: {again}"
        elif texts.get("digest") != digest(picture.sources, root):
            yield f"{FOLDER}/{name}.png was made by other code: {again}"
        sizes += path.stat().st_size
        if path.stat().st_size > MOST_BYTES:
            yield f"{FOLDER}/{name}.png takes more than {MOST_BYTES:,} bytes: {again}"
    if sizes > MOST_BYTES_OF_ALL:
        yield f"{FOLDER} takes {sizes:,} bytes of {MOST_BYTES_OF_ALL:,}: make smaller ones, run python docs/pictures.py"


def badly_linked(root: Path = REPOSITORY) -> Iterator[str]:
    """Say which pictures are linked but not there, or there but linked nowhere."""
    pages = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    linked = set()
    for page in pages:
        for found in _LINKED.finditer(page.read_text(encoding="utf-8")):
            link = found[1] or found[2]
            if "://" in link:
                continue
            linked.add((page.parent / link).resolve())
            if not (page.parent / link).is_file():
                yield f"{page.relative_to(root)} links {link}, which is not there: make it by python docs/pictures.py"
    for path in sorted((root / "docs").rglob("*.png")):
        if path.resolve() not in linked:
            yield f"{path.relative_to(root)} is linked nowhere: link it, or remove it from docs/pictures.py"


def digest(sources: tuple[str, ...], root: Path = REPOSITORY) -> str:
    """Return a digest of what code does: comments, docstrings and blank lines play no part."""
    whole = hashlib.sha256()
    for source in sources:
        text = (root / source).read_text(encoding="utf-8")
        whole.update("\n".join(_code(text) if source.endswith(".py") else [text]).encode())
    return whole.hexdigest()[:16]


def _code(text: str) -> list[str]:
    lines: list[str | None] = list(text.splitlines())
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            first = node.body[0]
            lines[first.lineno - 1 : first.end_lineno] = [None] * (first.end_lineno - first.lineno + 1)  # type: ignore[operator]
    return [line.rstrip() for line in lines if line and line.strip() and not line.strip().startswith("#")]


def _call(command: str, folder: Path) -> None:
    """Run a command of this checkout, by this Python."""
    words = shlex.split(command)
    script = [sys.executable, "-m", "pc_ewa"] if words[0] == "pc-ewa" else [sys.executable]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run([*script, *words[1:]], cwd=folder, env=environment, check=True)


if __name__ == "__main__":
    sys.exit(main())
