"""Jobs that move data between images inside of the daemon, with progress and cancel.

Nothing is made durable; a target that is new is best given as one that is being built.
"""

from __future__ import annotations

from typing import Any, Final

from storaged.errors import OperationUnsupported
from storaged.job import Job
from storaged.qsd.daemon import Daemon
from storaged.qsd.graph import Image

_SOURCE: Final = "source"
_TARGET: Final = "target"
#: A job that is over stays until its outcome was seen.
_KEPT: Final[dict[str, Any]] = {"auto_dismiss": False}


def mirror(source: Image, target: Image, job: Job[Any] | None = None) -> None:
    """Copy a disk into an image that is there, of the same size and empty.

    Holes stay holes where the target's format can say that something is zero: raw, qcow2, qed.
    After an error or a cancel the target's content is of no use.

    :raise OperationFailed: one of them cannot be opened, or the copying failed.
    """
    with _opened("copy", source, target, job) as daemon:
        device, node = daemon.open_image(source, _SOURCE), daemon.open_image(target, _TARGET)
        daemon.run_job("blockdev-mirror", device=device, target=node, sync="full", **_KEPT)


def backup(
    source: Image, target: Image, job: Job[Any] | None = None, *, compress: bool = False
) -> None:
    """Copy a disk into an image that is there, of the same size and empty.

    After an error or a cancel the target's content is of no use.

    :param compress: write compressed clusters, where the target's format has them.
    :raise OperationFailed: one of them cannot be opened, or the copying failed.
    """
    with _opened("copy", source, target, job) as daemon:
        device, node = daemon.open_image(source, _SOURCE), daemon.open_image(target, _TARGET)
        arguments = {"target": node, "sync": "full", "compress": compress, **_KEPT}
        daemon.run_job("blockdev-backup", device=device, **arguments)


def commit(top: Image, job: Job[Any] | None = None) -> None:
    """Write what an image has into its backing image, whose file is writable.

    The image stays as it is. After a cancel the backing image holds a part of it, and the two
    together read as before.

    :raise OperationUnsupported: it has no backing image.
    :raise OperationFailed: one of them cannot be opened, or the writing failed.
    """
    if top.backing is None:
        raise OperationUnsupported("an image without a backing image is not committed")
    with _opened("commit", top, None, job) as daemon:
        device = daemon.open_image(top, _SOURCE)
        base = f"{_SOURCE}-1"
        daemon.run_job("block-commit", device=device, base_node=base, **_KEPT)


def stream(top: Image, job: Job[Any] | None = None) -> None:
    """Copy what an image lacks from its backing images, so that it stands alone.

    Its header names no backing image afterwards. After a cancel it reads as before.

    :raise OperationUnsupported: it has no backing image.
    :raise OperationFailed: one of them cannot be opened, or the copying failed.
    """
    if top.backing is None:
        raise OperationUnsupported("an image without a backing image stands alone already")
    with _opened("flatten", top, None, job) as daemon:
        device = daemon.open_image(top, _SOURCE)
        daemon.run_job("block-stream", device=device, **_KEPT)


def _opened(doing: str, source: Image, target: Image | None, job: Job[Any] | None) -> Daemon:
    files, secrets = [*source.files()], source.secrets(_SOURCE)
    if target is not None:
        files += target.files()
        secrets |= target.secrets(_TARGET)
    return Daemon(f"{doing} an image of format '{source.format}'", files, secrets=secrets, job=job)
