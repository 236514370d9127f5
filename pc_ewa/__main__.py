"""`python -m pc_ewa`: the command pc-ewa, for torchrun and for environments whose commands are not on the PATH."""

import sys

from pc_ewa.cli import main

if __name__ == "__main__":
    sys.exit(main())
