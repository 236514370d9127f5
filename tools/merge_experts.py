"""Merge the experts of a checkpoint: every mixture becomes one FFN, and the model the ordinary ViT again."""

import argparse
import sys
from pathlib import Path

from pc_ewa.errors import CheckpointError, exit_on_error
from pc_ewa.train.restore import restore

EPILOG = """\
examples:
  python tools/merge_experts.py runs/quickstart/checkpoints/last.pt -o my_vit.pt
  python tools/merge_experts.py runs/quickstart/checkpoints/best.pt -o my_vit.pt --split test
  python tools/merge_experts.py runs/quickstart/checkpoints/last.pt -o my_vit.pt --split test data.root=/data

The output holds the weights under `base_model`, with the keys of the official Point-MAE code, which loads it with
strict=True."""


@exit_on_error
def main(arguments: list[str] | None = None) -> None:
    """Parse, merge, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="a checkpoint with mixtures of experts: last.pt, best.pt, step-N.pt")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="change keys of its config, as in data.root=/data"
    )
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="where to write the merged model")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    parser.add_argument(
        "--split",
        choices=("train", "val", "test"),
        help="also measure the accuracy before and after on this part of its dataset",
    )
    options = parser.parse_intermixed_args(arguments)
    output = Path(options.output)
    if output.exists() and not options.overwrite:
        raise CheckpointError(f"{output} is there already; choose another -o, or add --overwrite")
    if not output.parent.is_dir():
        raise CheckpointError(f"{output.parent} is no folder; create it or choose another -o")
    restored = restore(options.checkpoint, None, options.overrides)
    if not restored.mixtures:
        raise CheckpointError(f"{options.checkpoint} has no mixtures of experts: there is nothing to merge")
    before = restored.evaluate(options.split, routed=True) if options.split else None
    params, mixtures = restored.num_parameters, restored.mixtures
    restored.merge()
    restored.save(output)
    print(f"{mixtures} mixtures merged: {params:,} -> {restored.num_parameters:,} parameters, written to {output}")
    if before:
        after = restored.evaluate(options.split)
        print(f"accuracy on {options.split}: {before.overall:.2%} ({before.correct}/{before.shapes}) before, "
              f"{after.overall:.2%} ({after.correct}/{after.shapes}) after")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
