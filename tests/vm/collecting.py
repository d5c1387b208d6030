"""A plug-in of pytest that writes which tests it has collected to the file $VM_COLLECT, as JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    """Write the ids of the tests that are left after -k and -m."""
    ids = [item.nodeid for item in session.items]
    Path(os.environ["VM_COLLECT"]).write_text(json.dumps(ids), encoding="utf-8")
