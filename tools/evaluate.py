"""Measure a checkpoint: overall and mean-class accuracy, and the accuracy of every class."""

import argparse
import sys

from pc_ewa.errors import exit_on_error
from pc_ewa.train.restore import restore

EPILOG = """\
examples:
  python tools/evaluate.py runs/quickstart/checkpoints/merged_last.pt
  python tools/evaluate.py runs/quickstart/checkpoints/best.pt --split val
  python tools/evaluate.py modelnet_1k.pth --config my_config.yaml data.path=my_shapes.h5

Our own checkpoints know their config. A checkpoint that still has its mixtures is measured as it would be merged."""


@exit_on_error
def main(arguments: list[str] | None = None) -> None:
    """Parse, evaluate, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="a file of ours (last.pt, best.pt, merged_last.pt, ...) or an official one")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="change keys of the config, as in data.root=/data"
    )
    parser.add_argument(
        "--config",
        metavar="YAML",
        help="the experiment, for checkpoints that do not hold one (official files)",
    )
    parser.add_argument(
        "--split",
        choices=("train", "val", "test"),
        default="test",
        help="which part to measure (default: test)",
    )
    options = parser.parse_intermixed_args(arguments)
    restored = restore(options.checkpoint, options.config, options.overrides)
    accuracy = restored.evaluate(options.split)
    print(f"{options.checkpoint} on {options.split} of {restored.experiment.data.name}")
    share = f"{accuracy.correct}/{accuracy.shapes}, standard error {accuracy.standard_error:.2%}"
    print(f"overall accuracy     {accuracy.overall:.2%} ({share})")
    print(f"mean class accuracy  {accuracy.mean_class:.2%}")
    width = max(len(name) for name in restored.class_names)
    for name, row in zip(restored.class_names, accuracy.confusion, strict=True):
        shapes, correct = int(row.sum()), int(row[restored.class_names.index(name)])
        print(f"  {name:<{width}}  " + (f"{correct / shapes:7.1%} ({correct}/{shapes})" if shapes else "no shapes"))


if __name__ == "__main__":
    sys.exit(main())
