"""`python -m mask2former_dinov3` is the command `mask2former-dinov3`."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
