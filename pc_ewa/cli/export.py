"""`pc-ewa export`: a trained model as ONNX or .pt2, for other runtimes."""

from __future__ import annotations  # as in package.py

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pc_ewa.cli.command import Parser, add_config_overrides, add_what_files_lack, class_names, command
from pc_ewa.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from pc_ewa.train.restore import Restored

DESCRIPTION = """\
Export a trained classifier or segmenter as ONNX with grouping inside, or as a .pt2 of torch.export."""

EPILOG = """\
examples:
  pc-ewa export runs/quickstart -o furniture.onnx
  pc-ewa export runs/quickstart/checkpoints/merged_best.pt -o furniture.onnx --split test
  pc-ewa export runs/quickstart -o furniture_int8.onnx --int8
  pc-ewa export runs/quickstart -o furniture.pt2
  pc-ewa export furniture -o furniture.onnx     # the model that comes with the package
  pc-ewa export modelnet_1k.pth --config finetune/modelnet40 -o modelnet40.onnx

The graph maps any number of clouds of any size, (B, N, 3), to logits. A segmenter also takes the category of each
cloud, (B,) int64, and returns log-probabilities of the parts of each point. The graph is the model only: the caller
centres, scales and samples each cloud. The metadata of the file contain these settings and the class names;
examples/onnx_predict.py applies them with numpy. Before the file is written, its outputs are compared with PyTorch on a
few clouds, in onnxruntime and, if it is installed, in OpenVINO.

--int8 stores the linear layers in 8 bits, a quarter of the size. This changes the outputs: the metric is measured
before and after, and written into the file."""


def create_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(prog="pc-ewa export", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("checkpoint", help="a checkpoint without mixtures, a run, a saved folder, or furniture")
    add_config_overrides(parser, "change keys of its config, as in data.root=/data")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="what to write: FILE.onnx or FILE.pt2")
    parser.add_argument("--int8", action="store_true", help="store the linear layers in 8 bits (ONNX)")
    parser.add_argument(
        "--split",
        choices=("train", "val", "test", "none"),
        help="measure the file on this split of the run's dataset (default: test with --int8, else none)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    add_what_files_lack(parser)
    return parser


@command("export", extra="export")
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, load, export, print."""
    options = create_parser().parse_intermixed_args(arguments)
    output = Path(options.output)
    check(options, output)
    from pc_ewa.export.source import load

    restored = load(options.checkpoint, options.config, options.overrides, class_names(options))
    for note in restored.notes:
        print(f"note: {note}")
    split = options.split or ("test" if options.int8 else "none")
    if split != "none":
        restored.splits()  # fails before any work if the dataset is missing
    try:
        (export_int8 if options.int8 else export_exact)(restored, output, split)
    except CheckpointError as error:
        raise CheckpointError(f"{options.checkpoint}: {error}") from None
    print(f"written to {output} ({output.stat().st_size / 1e6:.1f} MB)")


def check(options: argparse.Namespace, output: Path) -> None:
    """Check the options before anything is loaded."""
    from pc_ewa.export.write import check_path

    check_path(output)
    if options.int8 and output.suffix != ".onnx":
        raise ConfigError(f"--int8 with -o {output}; 8 bits are for ONNX: choose a name that ends in .onnx")
    if output.exists() and not options.overwrite:
        raise CheckpointError(f"{output} is there already; choose another -o, or add --overwrite")


def export_exact(restored: Restored, output: Path, split: str) -> None:
    """Write the model in float32. Prints its largest difference from PyTorch, and its metric on the split."""
    from pc_ewa.export import export, load_exported
    from pc_ewa.export.source import knowledge, measure

    print(describe(export(restored.model, output, **knowledge(restored))))
    if split != "none":
        print(f"{split}: {measure(restored, load_exported(output), split).describe()}")  # type: ignore[arg-type]


def export_int8(restored: Restored, output: Path, split: str) -> None:
    """Write the model in 8 bits. Prints the difference of the float32 export from PyTorch, and the metrics of both."""
    from pc_ewa.export import export_onnx, quantize
    from pc_ewa.export.source import knowledge, measure

    measured = None if split == "none" else lambda model: measure(restored, model, split)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        exact = Path(folder) / "exact.onnx"
        print(describe(export_onnx(restored.model, exact, **knowledge(restored))) + " before its weights are rounded")
        scores = quantize(exact, output, measured)
    if scores:
        print(f"{split}: {scores.exact.describe()} in float32, {scores.int8.describe()} in int8")


def describe(differences: Mapping[str, float]) -> str:
    """Return a line with the largest difference of the exported model from PyTorch in each runtime."""
    found = ", ".join(f"{difference:.1e} in {runtime}" for runtime, difference in differences.items())
    return f"scores differ from PyTorch by at most {found}"
