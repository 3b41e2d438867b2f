"""`python -m unveil.training ...` is `unveil train ...`, for torchrun and accelerate, which start modules."""

from __future__ import annotations

import sys

from ..cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
