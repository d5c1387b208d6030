"""Run ``storaged`` as an ordinary user: ``python asuser.py UID [ARGUMENT]...``, by root.

All of it is loaded first, because Python may lie where that user may not read.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys

_LAZY = (
    "asyncio",
    "ctypes",
    "encodings.ascii",
    "encodings.idna",
    "grp",
    "hashlib",
    "hmac",
    "logging.handlers",
    "pwd",
)


def main() -> None:
    import storaged
    from storaged.daemon.main import main as daemon

    for name in _LAZY:
        importlib.import_module(name)
    for module in pkgutil.walk_packages(storaged.__path__, "storaged."):
        if not module.name.endswith("__main__") and ".cli" not in module.name:
            importlib.import_module(module.name)
    number = int(sys.argv[1])
    os.setgroups([])
    os.setresgid(number, number, number)
    os.setresuid(number, number, number)
    daemon(sys.argv[2:])


if __name__ == "__main__":
    main()
