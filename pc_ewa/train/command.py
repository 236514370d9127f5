"""The command line that the training tools share."""

import argparse
import json
from collections.abc import Sequence

from pc_ewa.config import load_experiment
from pc_ewa.errors import ConfigError
from pc_ewa.train.objectives import create_objective
from pc_ewa.train.runner import run


def train_command(
    description: str, epilog: str, elsewhere: dict[str, str], arguments: Sequence[str] | None = None
) -> None:
    """Parse, check that the experiment is one for this tool, and run it.

    Args:
        description: of the tool.
        epilog: its examples.
        elsewhere: tasks that it does not run, and the tool that does.
        arguments: the command line; that of the process if None.

    Raises:
        Error: a problem the user can solve.
    """
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="the experiment, a YAML file such as configs/quickstart.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="change keys of the config, as in train.lr=1e-3"
    )
    parser.add_argument(
        "--from",
        dest="init_from",
        metavar="CHECKPOINT",
        help="start from these weights: official files or ours (the same as init_from=CHECKPOINT)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="check config, data and run folder, then stop: nothing is trained",
    )
    options = parser.parse_intermixed_args(arguments)
    if options.init_from:
        options.overrides.append(f"init_from={json.dumps(options.init_from)}")  # quoted: a path may look like YAML
    experiment = load_experiment(options.config, options.overrides)
    create_objective(experiment)
    other = elsewhere.get(str(experiment.task))
    if other:
        raise ConfigError(f"{options.config} is for {experiment.model.name}: use python {other} {options.config}")
    run(experiment, check_only=options.check)
