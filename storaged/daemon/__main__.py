"""``python -m storaged.daemon`` is ``storaged``."""

from __future__ import annotations

import sys

from storaged.daemon.main import main

if __name__ == "__main__":
    sys.exit(main())
