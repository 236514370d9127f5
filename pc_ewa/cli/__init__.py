"""The command `pc-ewa`: one module for each subcommand, which parses, calls the package and prints.

Modules import torch and other large packages inside of functions, so that --help prints at once.
"""

from __future__ import annotations  # as in package.py

import sys
from collections.abc import Sequence
from importlib import import_module

from pc_ewa.errors import ConfigError, exit_on_error

COMMANDS = {
    "train": "train, merge the experts, evaluate: a whole experiment, resumed where it stopped",
    "evaluate": "measure a checkpoint: accuracy, mIoU or loss, linear SVM, few-shot folds",
    "predict": "predict the class of files, or the parts of their points",
    "merge": "merge the experts of a checkpoint, or convert it to another format",
    "export": "write a trained model as ONNX or .pt2, for use without pc-ewa",
    "compare": "compare variants of an experiment over seeds, or finished runs",
    "report": "write a page on runs: curves, confusions, mistakes as clouds to turn",
    "show": "draw clouds, patches, experts, attention, parts and mistakes",
    "prepare": "download a dataset and convert it to one file, or convert your own shapes",
    "benchmark": "time training steps, the point-cloud ops or data on this machine",
    "info": "print versions, devices and what a bug report needs",
}


@exit_on_error
def _refuse(name: str) -> None:
    from pc_ewa.validation import nearest

    raise ConfigError(f"unknown command {name!r}; {nearest(name, COMMANDS)}")


def describe_commands() -> str:
    """Return the text of `pc-ewa --help`."""
    rows = "\n".join(f"  {name:<10} {summary}" for name, summary in COMMANDS.items())
    return f"""\
usage: pc-ewa COMMAND [arguments]

Point-cloud transformers trained with Experts Weights Averaging.

commands:
{rows}

options:
  -h, --help show this help, or that of a command: pc-ewa train --help
  --version  show the version

examples:
  pc-ewa train quickstart
  pc-ewa evaluate runs/quickstart/checkpoints/merged_last.pt
  pc-ewa predict furniture chair.ply"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code. If `arguments` is None, they are those of the process."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(describe_commands())
    elif name == "--version":
        from pc_ewa.package import version

        print(f"pc-ewa {version()}")
    elif name in COMMANDS:
        code: int = import_module(f"pc_ewa.cli.{name}").main(rest)
        return code
    else:
        return _refuse(name)
    return 0
