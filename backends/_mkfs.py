"""Making file systems, where nothing else is lost.

Source: libvirt's behaviour for ``pool-build`` of fs pools; the manuals of the mkfs programs.
"""

from __future__ import annotations

import os
from typing import Any

from storaged import tool, udev
from storaged.backends._inuse import claimed
from storaged.backends._signatures import check_empty
from storaged.errors import CommandFailed, MissingProgram, OperationFailed
from storaged.job import Job

#: What makes mkfs go on where it would ask: a whole disk, an old file system.
_FORCED = {"xfs": "-f", "ext2": "-F", "ext3": "-F", "ext4": "-F", "vfat": "-I"}
#: How mkfs is told the name that the pool finds its device by: an option, and what stands before.
_EXT = {"UUID": ("-U", ""), "LABEL": ("-L", "")}
_NAMED = {
    "ext2": _EXT,
    "ext3": _EXT,
    "ext4": _EXT,
    "xfs": {"UUID": ("-m", "uuid="), "LABEL": ("-L", "")},
    "vfat": {"UUID": ("-i", ""), "LABEL": ("-n", "")},
}
#: A longer label is cut by mke2fs, in bytes.
_EXT_LABEL = 16
#: Names of libvirt for which the program has another.
_PROGRAMS = {"hfs+": "hfsplus"}
#: A large disk may discard all it has first, and an old one take long for that.
_TIMEOUT = 4 * 3600.0


def make_file_system(
    device: str, format: str, job: Job[Any], *, overwrite: bool, source: str = ""
) -> None:
    """Make a file system on a device or in an image file.

    What is in use is left alone also with *overwrite*, and locked until mkfs has ended. When this
    returns, the names below ``/dev/disk`` are those of the new file system.

    :param format: a value of ``source/format`` of fs pools.
    :param overwrite: do not look whether there is something on it.
    :param source: how the pool names the device; a ``UUID=`` or ``LABEL=`` goes on to name it.
    :raise OperationInvalid: the device is in use.
    :raise PoolBuilt: it holds something; nothing was changed.
    :raise ProbeFailed: it cannot be told what it holds; nothing was changed.
    :raise OperationFailed: mkfs failed: what the device holds now is unknown.
    """
    with claimed(device) as fd:
        if not overwrite:
            check_empty(device, format, job)
        if format == "auto":
            raise _failed(device, format, "Name a format in the pool's source: auto only mounts.")
        forced = [_FORCED[format]] if format in _FORCED else []
        program = f"mkfs.{_PROGRAMS.get(format, format)}"
        argv = [program, *forced, *_named(device, format, source), device]
        try:
            # it has the lock as long as it runs, also if we do not
            tool.run(argv, timeout=_TIMEOUT, job=job, changes=True, keep=(fd,))
        except MissingProgram as err:
            raise _failed(device, format, f"{err.detail}. {err.advice or ''}".strip()) from err
        except CommandFailed as err:
            last = err.stderr.strip().splitlines()[-1:] or ["It said nothing."]
            raise _failed(device, format, last[0]) from err
    udev.settle()  # it looks at the device anew when that is closed; mount goes by what it found


def _named(device: str, format: str, source: str) -> list[str]:
    """Return the arguments that give a new file system the name in the pool's source."""
    tag, _, value = source.partition("=")
    if tag not in _EXT:
        return []
    words = _NAMED.get(format, {}).get(tag)
    too_long = tag == "LABEL" and words == _EXT[tag] and len(os.fsencode(value)) > _EXT_LABEL
    if words is None or too_long or value.startswith("-"):
        why = f"It cannot be given {source} again. Name the device in the pool's source by path."
        raise _failed(device, format, why)
    option, before = words
    return [option, before + (value.replace("-", "") if option == "-i" else value)]


def _failed(device: str, format: str, why: str) -> OperationFailed:
    return OperationFailed(
        f"Failed to make filesystem of type '{format}' on device '{device}'", advice=why
    )
