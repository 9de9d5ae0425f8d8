"""The command ``python -m raykfold.hub``."""

from __future__ import annotations

import sys

from raykfold.outputs.hub_mirror import main

if __name__ == "__main__":
    sys.exit(main())
