"""``python -m storaged.cli`` is storagectl."""

from __future__ import annotations

import sys

from storaged.cli.main import main

sys.exit(main())
