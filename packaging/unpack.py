"""Unpack a part of a wheel: ``unpack.py DIRECTORY WHEEL PREFIX``."""

from __future__ import annotations

import sys
import zipfile


def main() -> None:
    """Write what begins with the prefix below the directory."""
    directory, wheel, prefix = sys.argv[1:]
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(prefix):
                archive.extract(name, directory)


if __name__ == "__main__":
    main()
