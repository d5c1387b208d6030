"""The interfaces of iscsiadm: one for each name that this host has as an initiator.

Those that we make carry a note, so that the last pool that used one can remove it, and that those
of other people are left alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from storaged.atomic import remove_file
from storaged.backends import _iscsiadm as iscsiadm
from storaged.backends._iscsinode import (
    ROOTS,
    find_interface,
    interface_is_used,
    interface_of,
    is_made,
    mark_made,
)
from storaged.backends._iscsisession import DEFAULT, read_sessions
from storaged.errors import InternalError, OperationFailed, StorageError
from storaged.job import Job


def require_interface(initiator: str | None, roots: Sequence[Path] = ROOTS) -> str | None:
    """Return the interface of an initiator, None if it does not matter.

    :raise OperationFailed: there is none.
    """
    if initiator is None:
        return None
    name = interface_of(initiator, roots)
    if name is None:
        raise OperationFailed(
            f"no iSCSI interface defined for IQN {initiator}",
            advice="A pool with this initiator makes one when it is started.",
        )
    return name


def settle_interface(
    initiator: str | None, job: Job[Any] | None = None, roots: Sequence[Path] = ROOTS
) -> str:
    """Return the interface of an initiator, made if there is none; None is the host's own.

    Call it with the database locked, until a record is made for the interface.

    :raise StorageError: it cannot be made; nothing of it is left.
    """
    if initiator is None:
        return DEFAULT
    name = interface_of(initiator, roots)
    if name is None:
        name = f"libvirt-iface-{int.from_bytes(os.urandom(4), 'big'):08x}"
        iscsiadm.new_interface(name, initiator, job)
        try:
            _mark(name, initiator, roots)
        except StorageError:
            iscsiadm.delete_interface(name)
            raise
    return name


def release_interface(name: str, roots: Sequence[Path] = ROOTS, sysfs: str = "/sys") -> None:
    """Remove an interface if we have made it, and no session and no record needs it.

    Call it with the database locked.

    :raise SystemFailure: it cannot be removed.
    """
    record = find_interface(name, roots)
    if record is None or not is_made(record) or interface_is_used(name, roots):
        return
    if all(session.interface != name for session in read_sessions(sysfs)):
        remove_file(record, durable=False)


def _mark(name: str, initiator: str, roots: Sequence[Path]) -> None:
    record = find_interface(name, roots)
    if record is None or interface_of(initiator, roots) != name:
        raise InternalError(f"iscsiadm did not make interface '{name}' for {initiator}")
    mark_made(record)
