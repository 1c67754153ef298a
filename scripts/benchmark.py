#!/usr/bin/env python
"""Runs `darts-jax benchmark` from the checkout that this script stands in.

    python scripts/benchmark.py --size paper_b16 --baseline torch [--json FILE]

The baseline needs PyTorch: pip install -e '.[benchmark]'.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from darts_jax.__main__ import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
