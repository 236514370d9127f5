"""Merge the experts of a checkpoint: every mixture becomes one FFN, and the model the ordinary ViT again."""

import argparse
import sys
from pathlib import Path
from typing import get_args

from pc_ewa.errors import CheckpointError, exit_on_error
from pc_ewa.models.checkpoints.write import WeightsFormat
from pc_ewa.train.restore import restore

EPILOG = """\
examples:
  python tools/merge_experts.py runs/quickstart/checkpoints/last.pt -o my_vit.pt
  python tools/merge_experts.py runs/quickstart/checkpoints/best.pt -o my_vit.pt --split test
  python tools/merge_experts.py runs/quickstart/checkpoints/last.pt -o my_vit.safetensors
  python tools/merge_experts.py runs/quickstart/checkpoints/merged_last.pt -o my_vit.safetensors --format safetensors
  python tools/merge_experts.py modelnet_1k.pth -o vit.safetensors --format safetensors --config my_config.yaml

The official format holds the weights under `base_model`, those of part segmentation under `model_state_dict` too, with
the keys of the official Point-MAE and Point-BERT code, which loads them with strict=True. Safetensors has the same
keys. Either way our tools read config and class names from it."""


@exit_on_error
def main(arguments: list[str] | None = None) -> None:
    """Parse, merge, write, print."""
    options = _parse(arguments)
    output = Path(options.output)
    written = _format(options.format, output)
    if output.exists() and not options.overwrite:
        raise CheckpointError(f"{output} is there already; choose another -o, or add --overwrite")
    if not output.parent.is_dir():
        raise CheckpointError(f"{output.parent} is no folder; create it or choose another -o")
    restored = restore(options.checkpoint, options.config, options.overrides)
    params, mixtures = restored.num_parameters, restored.mixtures
    if not mixtures and not options.format:
        raise CheckpointError(
            f"{options.checkpoint} has no mixtures of experts: there is nothing to merge; add --format to convert it"
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


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="a checkpoint with mixtures of experts: last.pt, best.pt, step-N.pt")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="change keys of its config, as in data.root=/data"
    )
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="where to write the merged model")
    parser.add_argument(
        "--format",
        choices=get_args(WeightsFormat),
        help="what to write (default: safetensors if OUT ends in .safetensors, else official); "
        "when given, a checkpoint without mixtures is converted",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    parser.add_argument(
        "--config", metavar="YAML", help="the experiment, for checkpoints that do not hold one (official files)"
    )
    parser.add_argument(
        "--split",
        choices=("train", "val", "test"),
        help="also measure before and after on this part of its dataset",
    )
    return parser.parse_intermixed_args(arguments)


def _format(asked: WeightsFormat | None, output: Path) -> WeightsFormat:
    """Choose by the extension, as reading does."""
    by_name: WeightsFormat = "safetensors" if output.suffix == ".safetensors" else "official"
    if asked not in (None, by_name):
        wanted = "end in .safetensors" if asked == "safetensors" else "not end in .safetensors, but in .pth, say"
        raise CheckpointError(f"--format {asked} with -o {output}; the name must {wanted}")
    return by_name


if __name__ == "__main__":
    sys.exit(main())
