"""Touchstone's command line: `python run_bench.py --help`."""

from __future__ import annotations

import sys

from bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
