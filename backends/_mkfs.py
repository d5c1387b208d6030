"""Making file systems, where nothing else is lost.

Source: libvirt's behaviour for ``pool-build`` of fs pools; the manuals of the mkfs programs.
"""

from __future__ import annotations

from typing import Any

from storaged import tool
from storaged.backends._inuse import require_unused
from storaged.backends._signatures import check_empty
from storaged.errors import CommandFailed, MissingProgram, OperationFailed
from storaged.job import Job

#: What makes mkfs go on where it would ask: a whole disk, an old file system.
_FORCED = {"xfs": "-f", "ext2": "-F", "ext3": "-F", "ext4": "-F", "vfat": "-I"}
#: Names of libvirt for which the program has another.
_PROGRAMS = {"hfs+": "hfsplus"}
#: A large disk may discard all it has first, and an old one take long for that.
_TIMEOUT = 4 * 3600.0


def make_file_system(device: str, format: str, job: Job[Any], *, overwrite: bool) -> None:
    """Make a file system on a device or in an image file.

    What is in use is left alone also with *overwrite*.

    :param format: a value of ``source/format`` of fs pools.
    :param overwrite: do not look whether there is something on it.
    :raise OperationInvalid: the device is in use.
    :raise PoolBuilt: it holds something; nothing was changed.
    :raise ProbeFailed: it cannot be told what it holds; nothing was changed.
    :raise OperationFailed: mkfs failed: what the device holds now is unknown.
    """
    require_unused(device)
    if not overwrite:
        check_empty(device, format, job)
    if format == "auto":
        raise _failed(device, format, "Name a format in the pool's source: auto only mounts.")
    forced = [_FORCED[format]] if format in _FORCED else []
    argv = [f"mkfs.{_PROGRAMS.get(format, format)}", *forced, device]
    try:
        tool.run(argv, timeout=_TIMEOUT, job=job, changes=True)
    except MissingProgram as err:
        raise _failed(device, format, f"{err.detail}. {err.advice or ''}".strip()) from err
    except CommandFailed as err:
        last = err.stderr.strip().splitlines()[-1:] or ["It said nothing."]
        raise _failed(device, format, last[0]) from err


def _failed(device: str, format: str, why: str) -> OperationFailed:
    return OperationFailed(
        f"Failed to make filesystem of type '{format}' on device '{device}'", advice=why
    )
