"""`python -m pc_ewa`: the command pc-ewa, for torchrun and where the command is not on the path."""

import sys

from pc_ewa.cli import main

if __name__ == "__main__":
    sys.exit(main())
