"""Write a page on runs: `pc-ewa report`, from a clone."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # last: an installed pc_ewa goes first
from pc_ewa.cli.report import main

if __name__ == "__main__":
    sys.exit(main())
