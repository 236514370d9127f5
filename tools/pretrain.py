"""Pre-train without labels: Point-MAE, the dVAE tokenizer, Point-BERT; with or without EWA."""

import sys

from pc_ewa.errors import exit_on_error
from pc_ewa.train.command import train_command

EPILOG = """\
examples:
  python tools/pretrain.py configs/quickstart_pretrain.yaml                  # minutes, on the bundled furniture
  python tools/pretrain.py configs/quickstart_pretrain.yaml ewa=null output=runs/dense_pretrain
  python tools/pretrain.py configs/pretrain/point_mae_shapenet55.yaml ewa.num_experts=4 output=runs/point_mae_ewa
  python tools/pretrain.py configs/pretrain/dvae_shapenet55.yaml             # first the tokenizer,
  python tools/pretrain.py configs/pretrain/point_bert_shapenet55.yaml \\
      tokenizer=runs/dvae_shapenet55/checkpoints/merged_last.pt              # then what predicts its tokens

The run folder (output=, by default runs/NAME for NAME.yaml) gets the resolved config.yaml with every key there is,
log.txt, metrics.jsonl, checkpoints/ and summary.json. The same command again resumes a run that was cut off.
checkpoints/merged_last.pt is what python tools/finetune.py --from takes."""


@exit_on_error
def main(arguments: list[str] | None = None) -> None:
    """Parse, train, print."""
    elsewhere = {"classify": "tools/finetune.py", "segment": "tools/finetune.py"}
    train_command(str(__doc__), EPILOG, elsewhere, arguments)


if __name__ == "__main__":
    sys.exit(main())
