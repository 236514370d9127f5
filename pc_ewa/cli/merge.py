"""`pc-ewa merge`: convert a checkpoint with experts to one of the plain ViT."""

from __future__ import annotations  # as in package.py

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pc_ewa.cli.command import Parser, add_config_overrides, add_what_files_lack, class_names, command
from pc_ewa.errors import CheckpointError

DESCRIPTION = """\
Merge the experts of a checkpoint: every mixture becomes one FFN, and the model is the plain ViT again."""

EPILOG = """\
examples:
  pc-ewa merge runs/quickstart/checkpoints/last.pt -o my_vit.pt
  pc-ewa merge runs/quickstart/checkpoints/best.pt -o my_vit.pt --split test
  pc-ewa merge runs/quickstart/checkpoints/last.pt -o my_vit.safetensors
  pc-ewa merge runs/quickstart/checkpoints/merged_last.pt -o my_vit.safetensors --format safetensors
  pc-ewa merge modelnet_1k.pth -o vit.safetensors --format safetensors --config finetune/modelnet40

The official format has the weights under `base_model`, and those of part segmentation under `model_state_dict` too. The
keys are those of the official Point-MAE and Point-BERT code, which loads them with strict=True. Safetensors files have
the same keys. pc-ewa reads config and class names from both."""

Format = Literal["official", "safetensors"]
ENDINGS: dict[str, Format] = {".pt": "official", ".pth": "official", ".safetensors": "safetensors"}


def create_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(prog="pc-ewa merge", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument(
        "checkpoint", help="a checkpoint with mixtures of experts: last.pt, best.pt, step-N.pt; or a run folder"
    )
    add_config_overrides(parser, "change keys of its config, as in data.root=/data")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="where to write the merged model")
    parser.add_argument(
        "--format",
        choices=("official", "safetensors"),
        help="what to write (default: safetensors if OUT ends in .safetensors, else official); "
        "when given, a checkpoint without mixtures is converted",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    add_what_files_lack(parser)
    parser.add_argument(
        "--split", choices=("train", "val", "test"), help="also measure on this split of its dataset, before and after"
    )
    return parser


@command("merge", extra="train")
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, merge, write, print."""
    options = create_parser().parse_intermixed_args(arguments)
    output = Path(options.output)
    if output.exists() and not options.overwrite:
        raise CheckpointError(f"{output} is there already; choose another -o, or add --overwrite")
    written = choose_format(options.format, output)
    if not output.parent.is_dir():
        raise CheckpointError(f"{output.parent} is not a folder; create it or choose another -o")
    merge(options, output, written)


def choose_format(asked: Format | None, output: Path) -> Format:
    """Choose the format by the extension, as reading does.

    Raises:
        CheckpointError: an unknown extension, or one that contradicts --format.
    """
    if output.suffix not in ENDINGS:
        raise CheckpointError(
            f"-o {output}: it must end in {', '.join(ENDINGS)}, not in {output.suffix or 'nothing'!r}"
        )
    if asked not in (None, ENDINGS[output.suffix]):
        endings = " or ".join(ending for ending, format in ENDINGS.items() if format == asked)
        raise CheckpointError(f"--format {asked} with -o {output}; the name must end in {endings}")
    return ENDINGS[output.suffix]


def merge(options: argparse.Namespace, output: Path, written: Format) -> None:
    """Merge, write, and print the number of parameters, and the metric if a split is given."""
    from pc_ewa.train.restore import restore
    from pc_ewa.train.run_folder import checkpoint_of

    place = checkpoint_of(Path(options.checkpoint), merged=False)
    restored = restore(place, options.config, options.overrides, class_names(options))
    params, mixtures = restored.num_parameters, restored.mixtures
    if not mixtures and not options.format:
        raise CheckpointError(
            f"{options.checkpoint} has no mixtures of experts: there is nothing to merge; to convert it add "
            "--format official or --format safetensors"
        )
    for note in restored.notes:
        print(f"note: {note}")
    before = restored.evaluate(options.split, routed=True) if options.split and mixtures else None
    restored.merge()
    restored.save(output, written)
    if mixtures:
        print(f"{mixtures} mixtures merged: {params:,} -> {restored.num_parameters:,} parameters, written to {output}")
    else:
        print(f"0 mixtures: nothing to merge, written as {written} to {output}")
    if options.split:
        after = restored.evaluate(options.split).describe()
        print(f"{options.split}: " + (f"{before.describe()} before, {after} after" if before else after))
