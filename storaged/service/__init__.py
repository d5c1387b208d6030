"""The calls of the protocol as calls of the engine: no sockets, no event loop, no bytes.

A `Session` serves one connection, whether its calls come over a socket or from the same process.
"""

from __future__ import annotations

from storaged.rpc.identity import Identity
from storaged.service.handler import Opened, Outcome
from storaged.service.service import Service
from storaged.service.session import Session

__all__ = ["Service", "Session", "Opened", "Outcome", "Identity"]  # noqa: RUF022 -- by use
