"""`python -m pc_ewa.train CONFIG`: train whatever the config says; what tools/run_train.sh starts."""

import sys

from pc_ewa.errors import exit_on_error
from pc_ewa.train.command import train_command


@exit_on_error
def main() -> None:
    """Parse and train."""
    train_command(str(__doc__), "Examples: python tools/finetune.py --help, python tools/pretrain.py --help", {})


if __name__ == "__main__":
    sys.exit(main())
