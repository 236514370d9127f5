"""Train a classifier, from scratch or from pretrained weights, with or without EWA."""

import argparse
import json
import sys

from pc_ewa.config import load_experiment
from pc_ewa.errors import exit_on_error
from pc_ewa.train import run

EPILOG = """\
examples:
  python tools/finetune.py configs/quickstart.yaml
  python tools/finetune.py configs/quickstart.yaml train.epochs=10 ewa.num_experts=8 output=runs/try
  python tools/finetune.py configs/quickstart.yaml --from pretrained.pth output=runs/tuned
  python tools/finetune.py configs/quickstart.yaml ewa=null output=runs/dense      # without EWA

The run folder (output=, by default runs/NAME for NAME.yaml) gets the resolved config.yaml with every key there is,
log.txt, metrics.jsonl, checkpoints/ and summary.json. The same command again resumes a run that was cut off."""


@exit_on_error
def main(arguments: list[str] | None = None) -> None:
    """Parse, train, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="the experiment, a YAML file such as configs/quickstart.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="change keys of the config, as in train.lr=1e-3"
    )
    parser.add_argument(
        "--from",
        dest="init_from",
        metavar="CHECKPOINT",
        help="start from these weights: official Point-MAE files or ours (the same as init_from=CHECKPOINT)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="check config, data and run folder, then stop: nothing is trained",
    )
    options = parser.parse_intermixed_args(arguments)
    if options.init_from:
        options.overrides.append(f"init_from={json.dumps(options.init_from)}")  # quoted: a path may look like YAML
    run(load_experiment(options.config, options.overrides), check_only=options.check)


if __name__ == "__main__":
    sys.exit(main())
