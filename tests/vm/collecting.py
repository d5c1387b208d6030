"""A plug-in of pytest that writes which tests it has collected to the file $VM_COLLECT, as JSON.

With $VM_LACKING those are left out that this machine can run itself.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.kernel import features


def pytest_collection_finish(session: pytest.Session) -> None:
    """Write the ids of the tests that are left after -k and -m."""
    items = session.items
    if os.environ.get("VM_LACKING"):
        items = [item for item in items if features.lacking(item) is not None]
    ids = [item.nodeid for item in items]
    Path(os.environ["VM_COLLECT"]).write_text(json.dumps(ids), encoding="utf-8")
