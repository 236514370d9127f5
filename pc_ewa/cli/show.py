"""`pc-ewa show`: pictures of clouds, patches, experts, attention, parts and mistakes."""

from __future__ import annotations  # as in package.py

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pc_ewa.cli.command import Parser, command
from pc_ewa.errors import ConfigError

if TYPE_CHECKING:
    from pc_ewa.viz import Picture, View

DESCRIPTION = """\
Draw a view of files, of a dataset, or of a model at work on one. `pc-ewa show --list` lists the views and their
options."""

EPILOG = """\
examples:
  pc-ewa show --list
  pc-ewa show cloud chair.ply sofa.off -o shapes.png
  pc-ewa show classes sweethome3d per_class=3 -o classes.png
  pc-ewa show augment quickstart augment.rotate=true -o augment.png
  pc-ewa show patches quickstart shapes=[0,7] -o patches.png
  pc-ewa show experts runs/quickstart layers=2 -o experts.png
  pc-ewa show mistakes runs/quickstart count=4 -o mistakes.png
  pc-ewa show attention furniture -o attention.html              # the model that comes with the package
  pc-ewa show reconstruction runs/quickstart_pretrain/checkpoints/merged_last.pt -o masked.png

To name a dataset, give its name, a prepared .h5 file, a folder of shapes, or the config, run, checkpoint or saved model
that used it. To name a model, give a run folder, a checkpoint, a folder of save_pretrained, "furniture", or a config
for an untrained one. The extension of FILE selects the renderer: .png is drawn by open3d, or by matplotlib where open3d
cannot draw; .svg and .pdf by matplotlib; .html by plotly, with clouds that you can rotate. Without -o a window opens.
For several pictures, give as many -o as SOURCEs."""


def create_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(prog="pc-ewa show", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("view", nargs="?", metavar="VIEW", help="a view, as --list names them")
    parser.add_argument(
        "sources",
        nargs="*",
        default=[],
        metavar="SOURCE",
        help="files, or a dataset, config, run or checkpoint; key=value among them is an option of the view, such as "
        "shapes=[0,7], or changes the config, as in data.root=/data",
    )
    parser.add_argument("--list", action="store_true", help="list the views and their options")
    parser.add_argument("-o", "--output", action="append", metavar="FILE", help="where to write: .png .svg .pdf .html")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test", help="shapes of (default: test)")
    parser.add_argument("--config", metavar="CONFIG", help="the config of a checkpoint that holds none")
    parser.add_argument(
        "--renderer",
        choices=("auto", "open3d", "matplotlib", "plotly"),
        default="auto",
        help="the renderer (default: auto, the best that works here)",
    )
    parser.add_argument("--side", type=int, metavar="PIXELS", help="width of each panel (default: by their number)")
    return parser


@command("show", extra="viz")
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, create the pictures, draw them."""
    options = create_parser().parse_intermixed_args(arguments)
    if options.list:
        print_views()
        return
    from pc_ewa.validation import choose
    from pc_ewa.viz import VIEWS, Scene, draw, drawing
    from pc_ewa.viz.renderers.sheet import check_picture

    if options.view is None:
        raise ConfigError("name a VIEW; pc-ewa show --list lists them")
    view = choose("view", options.view, VIEWS)
    sources, chosen, overrides = sort_arguments(options.sources, view)
    jobs = share_outputs(sources, [Path(name) for name in options.output or []], view)
    if options.side is not None and not 64 <= options.side <= 4096:
        raise ConfigError(f"--side {options.side}; choose 64 to 4096")
    # Check every output first: creating a picture may take a forward pass over a dataset.
    for _, path in jobs:
        if path is not None:
            check_picture(path)
        elif not drawing.has_display():
            raise ConfigError("there is no display to open a window on; write a file: -o picture.png")
    pictures = [(make(view, which, chosen, overrides, options), path) for which, path in jobs]
    with told():
        draw([(picture, path) for picture, path in pictures if path is not None], options.renderer, options.side)
        for picture, path in pictures:
            if path is not None:
                print(f"written to {path}")
            elif isinstance(picture, Scene):
                drawing.show_now(picture, options.renderer)
            else:
                raise ConfigError(f"{options.view} is a chart; write a file: -o chart.png")


def print_views() -> None:
    """Print every view with its options and their defaults."""
    import inspect

    from pc_ewa.viz import VIEWS

    for name, view in VIEWS.items():
        parameters = inspect.signature(view.make).parameters.values()
        defaults = (f"{p.name}={as_yaml(p.default)}" for p in parameters if p.name in view.options)
        print(f"{name:<15}{view.title}\n{'':<15}{' '.join(defaults)}".rstrip())


def as_yaml(value: Any) -> str:
    """Format a default value as a user would write it."""
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def sort_arguments(words: Sequence[str], view: View) -> tuple[list[str], dict[str, Any], list[str]]:
    """Sort arguments into sources, checked options of the view, and changes of the config."""
    from pc_ewa.validation import check_arguments
    from pc_ewa.viz.view import SUBJECTS
    from pc_ewa.yaml_config import parse_yaml

    sources, chosen, overrides = [], {}, []
    for word in words:
        key, equals, value = word.partition("=")
        # A file may have "=" in its name: a path that exists is a source.
        if not equals or Path(word).exists():
            sources.append(word)
        elif key in view.options:
            parsed = parse_yaml(value)
            chosen[key] = [parsed] if key == "shapes" and isinstance(parsed, int) else parsed
        elif "." in key or view.needs & {"clouds", "model"}:
            overrides.append(word)
        else:
            raise ConfigError(f"unknown option {key!r}; the view has {', '.join(sorted(view.options)) or 'none'}")
    return sources, check_arguments("show", view.make, chosen, skip=SUBJECTS), overrides


def share_outputs(sources: Sequence[str], outputs: Sequence[Path], view: View) -> list[tuple[list[str], Path | None]]:
    """Return pairs of sources and output file, one for each picture. A file of None means a window."""
    if not sources:
        raise ConfigError("name a SOURCE: a file, dataset, config, run or checkpoint; see pc-ewa show --help")
    if len(outputs) == len(sources):
        return [([source], path) for source, path in zip(sources, outputs, strict=True)]
    if len(outputs) <= 1 and ("files" in view.needs or len(sources) == 1):
        return [(list(sources), outputs[0] if outputs else None)]
    raise ConfigError(f"{len(sources)} sources and {len(outputs)} -o; give as many -o as sources")


def make(
    view: View, sources: list[str], chosen: dict[str, Any], overrides: list[str], options: argparse.Namespace
) -> Picture:
    """Load the inputs of the view, and create its picture."""
    from pc_ewa.report.subjects import Subjects

    with_model = "model" in view.needs
    split, config = options.split, options.config
    subjects = Subjects(sources, overrides, split, config, with_model=with_model, experts=view.experts)
    given = {name: getattr(subjects, name) for name in sorted(view.needs)}
    for note in subjects.notes:
        print(f"note: {note}")
    return view.make(**given, **chosen)


@contextmanager
def told() -> Iterator[None]:
    """Print the log of the renderers, which has the chosen renderer and the reason, inside a `with` block."""
    log, handler = logging.getLogger("pc_ewa.viz"), logging.StreamHandler(sys.stdout)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
