"""`pc-ewa train`: a complete run, from a config to merged weights and their metrics."""

from __future__ import annotations  # as in package.py

import json
from collections.abc import Sequence

from pc_ewa.cli.command import Parser, add_config_overrides, command
from pc_ewa.errors import ConfigError

DESCRIPTION = """\
Train the model of a config, with or without EWA: a classifier, a segmenter, Point-MAE, the dVAE tokenizer or
Point-BERT. Then merge the experts and evaluate."""

EPILOG = """\
examples:
  pc-ewa train quickstart                                                  # minutes, on the bundled furniture
  pc-ewa train quickstart train.epochs=10 ewa.num_experts=8 output=runs/try
  pc-ewa train quickstart ewa=null output=runs/dense                       # without EWA
  pc-ewa train quickstart_pretrain                                         # Point-MAE, labels unused
  pc-ewa train pretrain/point_mae_shapenet55 ewa.num_experts=4 output=runs/point_mae_ewa
  pc-ewa train pretrain/dvae_shapenet55                                    # first the tokenizer,
  pc-ewa train pretrain/point_bert_shapenet55 \\
      tokenizer=runs/dvae_shapenet55/checkpoints/merged_last.pt            # then what predicts its tokens
  pc-ewa train finetune/modelnet40 --from pretrain.pth                     # official Point-MAE weights, or ours
  pc-ewa train finetune/modelnet40 --from pretrain.pth ewa.num_experts=4 output=runs/ewa

The run folder (output=, by default runs/NAME for NAME.yaml) gets config.yaml with every key resolved, log.txt,
metrics.jsonl, checkpoints/ and summary.json. The same command resumes a run that was stopped."""


def create_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(prog="pc-ewa train", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("config", help="the experiment: a YAML file, or the name of a bundled one such as quickstart")
    add_config_overrides(parser)
    parser.add_argument(
        "--from",
        dest="init_from",
        metavar="CHECKPOINT",
        help="start from these weights: official files or ours (the same as init_from=CHECKPOINT)",
    )
    parser.add_argument(
        "--check", action="store_true", help="check config, data and run folder, then stop: nothing is trained"
    )
    parser.add_argument("--report", action="store_true", help="write report.html into the run folder at the end")
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="with --check: how many processes will share each batch"
    )
    return parser


@command("train", extra="train")
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, train, print."""
    options = create_parser().parse_intermixed_args(arguments)
    if options.init_from:
        # Overrides are parsed as YAML, which would read some paths as a number or mapping. JSON strings are YAML too.
        options.overrides.append(f"init_from={json.dumps(options.init_from)}")
    if options.processes < 1 or (options.processes > 1 and not options.check):
        start = "start them by GPUS=N bash tools/run_train.sh, or by torchrun"
        raise ConfigError(f"--processes {options.processes} is for --check, from 1 on; {start}")
    from pc_ewa.config import load_experiment
    from pc_ewa.train.distributed import is_main_process
    from pc_ewa.train.run import check, run

    experiment = load_experiment(options.config, options.overrides)
    if options.check:
        found = check(experiment, options.processes)
        if is_main_process():
            print(f"{options.config}: {found}")
        return
    if options.report:
        from pc_ewa.report import report_after

        run(experiment, report_after)
    else:
        run(experiment)
