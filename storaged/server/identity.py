"""Who is at the other end of a UNIX socket, and the secret that the daemons of a host share.

Sources: unix(7), proc(5); libvirt's ``system.token``.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from contextlib import suppress
from pathlib import Path

from storaged.atomic import make_directory
from storaged.driverlock import lock_first_byte
from storaged.errors import InternalError, system_errors
from storaged.paths import printable
from storaged.process import start_time
from storaged.rpc.identity import Identity

#: ``struct ucred``: pid, uid, gid.
_UCRED = struct.Struct("iII")
#: The security label of the peer; Python has no name for it.
_SO_PEERSEC = 31
#: Labels of other security modules come through the same option.
_SELINUX = Path("/sys/fs/selinux/enforce")

_TOKEN = re.compile(r"[0-9a-f]{32}")


def peer_identity(connection: socket.socket) -> Identity:
    """Return who connected, by what the kernel noted at that moment. It never waits.

    Names of users and groups are left out: a directory service may take its time (`with_names`).

    :raise OSError: the connection is gone.
    """
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(data)
    return Identity(
        uid=uid,
        gid=gid,
        pid=pid or None,  # 0: a process that our namespace does not see
        started=start_time(pid) if pid else None,
        selinux=_label(connection) if _SELINUX.exists() else None,
        trusted=uid == 0,
    )


def with_names(identity: Identity) -> Identity:
    """Return *identity* with the names of its user and group. This may wait for long."""
    import grp
    import pwd

    user, group = identity.user, identity.group
    with suppress(KeyError, OSError):
        if user is None and identity.uid is not None:
            user = pwd.getpwuid(identity.uid).pw_name
    with suppress(KeyError, OSError):
        if group is None and identity.gid is not None:
            group = grp.getgrgid(identity.gid).gr_name
    return identity._replace(user=user, group=group)


def _label(connection: socket.socket) -> str | None:
    try:
        label = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERSEC, 4096)
    except OSError:
        return None
    return label.rstrip(b"\0").decode(errors="surrogateescape") or None


def system_token(path: Path) -> str:
    """Return the secret by which the daemons of one user know each other.

    Who comes first makes it, under the lock that libvirt's daemons take there as well.

    :raise SystemFailure: it can be neither read nor made.
    :raise InternalError: the file holds something else, or others may read it.
    """
    make_directory(path.parent, mode=0o755)
    shown = printable(path)
    with system_errors(f"Failed to open system token '{shown}'"):
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600)
        try:
            lock_first_byte(fd, wait=True)
            found = os.fstat(fd)
            if found.st_uid != os.geteuid() or found.st_mode & 0o177:
                raise InternalError(
                    f"system token '{shown}' is not for its owner alone",
                    advice=f"Remove it and start libvirt's daemons and this one again: rm {shown}",
                )
            text = os.pread(fd, 64, 0).decode(errors="replace")
            if not text:
                text = os.urandom(16).hex()
                os.pwrite(fd, text.encode(), 0)
        finally:
            os.close(fd)
    if not _TOKEN.fullmatch(text.strip()):
        raise InternalError(f"system token '{shown}' does not hold 32 hexadecimal digits")
    return text.strip()
