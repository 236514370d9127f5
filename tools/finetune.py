"""Train a classifier or a segmenter, from scratch or from pretrained weights, with or without EWA."""

import sys

from pc_ewa.errors import exit_on_error
from pc_ewa.train.command import train_command

EPILOG = """\
examples:
  python tools/finetune.py configs/quickstart.yaml
  python tools/finetune.py configs/quickstart.yaml train.epochs=10 ewa.num_experts=8 output=runs/try
  python tools/finetune.py configs/quickstart.yaml ewa=null output=runs/dense      # without EWA
  python tools/finetune.py configs/finetune/modelnet40.yaml --from pretrain.pth    # official Point-MAE weights, or ours
  python tools/finetune.py configs/finetune/modelnet40.yaml --from pretrain.pth ewa.num_experts=4 output=runs/ewa

The run folder (output=, by default runs/NAME for NAME.yaml) gets the resolved config.yaml with every key there is,
log.txt, metrics.jsonl, checkpoints/ and summary.json. The same command again resumes a run that was cut off."""


@exit_on_error
def main(arguments: list[str] | None = None) -> None:
    """Parse, train, print."""
    elsewhere = {"pretrain": "tools/pretrain.py", "tokenize": "tools/pretrain.py"}
    train_command(str(__doc__), EPILOG, elsewhere, arguments)


if __name__ == "__main__":
    sys.exit(main())
