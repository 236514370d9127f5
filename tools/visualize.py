"""Draw clouds, patches, experts and mistakes: `pc-ewa show`, from a clone."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # last: an installed pc_ewa goes first
from pc_ewa.cli.show import main

if __name__ == "__main__":
    sys.exit(main())
