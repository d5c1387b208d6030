"""Secrets: passphrases and passwords that pools and volumes name, and that libvirt keeps.

Libvirt's daemon of secrets keeps them where one runs; it is asked over its socket. Elsewhere they
lie in libvirt's own files, which are read and written here, so that both find what the other left.

Names are loaded at their first use: the values and their XML serve clients as well.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storaged.secrets.calls import SecretCalls
    from storaged.secrets.document import format_secret, parse_secret
    from storaged.secrets.source import KeptSecrets
    from storaged.secrets.values import (
        SecretChange,
        SecretDef,
        SecretEvent,
        SecretFilter,
        SecretKind,
    )

#: Where each name is defined.
_HOMES = {
    "KeptSecrets": "source",
    "SecretCalls": "calls",
    "SecretChange": "values",
    "SecretDef": "values",
    "SecretEvent": "values",
    "SecretFilter": "values",
    "SecretKind": "values",
    "format_secret": "document",
    "parse_secret": "document",
}

__all__ = [
    "KeptSecrets",
    "SecretCalls",
    "SecretChange",
    "SecretDef",
    "SecretEvent",
    "SecretFilter",
    "SecretKind",
    "format_secret",
    "parse_secret",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
