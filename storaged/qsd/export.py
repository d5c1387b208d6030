"""Read and write an image of any format that QEMU knows, as the disk it stands for."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from storaged.errors import Cancelled, StorageError, system_errors
from storaged.job import Job
from storaged.nbd import NbdHandle
from storaged.qsd.daemon import Daemon
from storaged.qsd.graph import Image

_NODE: Final = "image"
_EXPORT: Final = "disk"


@contextmanager
def export(image: Image, job: Job[Any] | None = None) -> Iterator[NbdHandle]:
    """Open *image* in a daemon of its own; give its disk as a `Handle` while the context lasts.

    It can be written to if the image's file is writable; at the end all is in the file, but only
    `Handle.flush` makes it durable, and not even that where the file is one that is being built.

    :param job: its cancel ends a call on the handle that waits.
    :raise OperationFailed: the image cannot be opened.
    :raise WrongPassphrase: not with this secret.
    :raise CommandFailed: the daemon died; also in place of the `OSError` that the handle gave.
    :raise Cancelled: the job was cancelled; also in place of such an `OSError`.
    """
    listener, ours = _connected_pair()
    writable = image.file.writable
    with listener, ours:
        daemon = Daemon(
            f"open an image of format '{image.format}'",
            tuple(image.files()),
            secrets=image.secrets(_NODE),
            job=job,
            listener=listener,
        )
        with daemon:
            listener.close()
            node = daemon.open_image(image, _NODE)
            daemon.execute(
                "block-export-add",
                type="nbd",
                id=_EXPORT,
                node_name=node,
                name=_EXPORT,
                writable=writable,
            )
            with _served(daemon, ours, job) as handle:
                yield handle


@contextmanager
def _served(daemon: Daemon, sock: socket.socket, job: Job[Any] | None) -> Iterator[NbdHandle]:
    """Give the handle, and say what is behind an error of its."""
    take_back = None
    try:
        with NbdHandle(sock, _EXPORT) as handle:
            if job is not None:
                take_back = job.on_cancel(handle.interrupt)
            yield handle
    except OSError as err:
        if job is not None and job.cancelling:
            raise Cancelled(f"{job.kind} was cancelled") from err
        death = daemon.failure() if isinstance(err, ConnectionError) else None
        if isinstance(death, StorageError):
            raise death from err
        raise
    finally:
        if take_back is not None:
            take_back()


def _connected_pair() -> tuple[socket.socket, socket.socket]:
    """Return a listening socket and the only one that will ever be connected to it.

    Its path lies in a directory that nobody else can enter, and is gone before anybody serves it.
    """
    import tempfile  # slow to import

    listener = socket.socket(socket.AF_UNIX)
    ours = socket.socket(socket.AF_UNIX)
    try:
        with (
            system_errors("Cannot make a socket"),
            tempfile.TemporaryDirectory(prefix="storaged-") as folder,
        ):
            # however long the folder's name is, an address has room for this
            entrance = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                listener.bind(f"/proc/self/fd/{entrance}/nbd")
                listener.listen(1)
                ours.connect(f"/proc/self/fd/{entrance}/nbd")
            finally:
                os.close(entrance)
    except BaseException:
        listener.close()
        ours.close()
        raise
    return listener, ours
