"""The command ``python -m raykfold.report``."""

from __future__ import annotations

import sys

from raykfold.pages.run_page import main

if __name__ == "__main__":
    sys.exit(main())
