"""Changes of an image in place: its size, its internal snapshots, its passphrases."""

from __future__ import annotations

from math import inf
from typing import Any, Final

from storaged.job import Job
from storaged.qsd.daemon import Daemon
from storaged.qsd.graph import Image

_NODE: Final = "image"
_NEW, _OLD = "new.key", "old.key"


def resize(image: Image, capacity: int, job: Job[Any] | None = None) -> None:
    """Give an image another virtual size, in bytes.

    It may be a smaller one: what lies above is lost without a question.

    :raise OperationFailed: its format does not allow it; nothing has changed.
    """
    with _opened("resize", image, job) as daemon:
        node = daemon.open_image(image, _NODE)
        daemon.execute("block_resize", patience=inf, node_name=node, size=capacity)


def create_snapshot(image: Image, name: str, job: Job[Any] | None = None) -> None:
    """Keep the content of a qcow2 under a name inside of it.

    :raise OperationFailed: it has a snapshot of this name, or its format has none.
    """
    with _opened("take a snapshot of", image, job) as daemon:
        node = daemon.open_image(image, _NODE)
        command = "blockdev-snapshot-internal-sync"
        daemon.execute(command, patience=inf, device=node, name=name)


def delete_snapshot(image: Image, name: str, job: Job[Any] | None = None) -> None:
    """Give up what a qcow2 keeps under a name.

    :raise OperationFailed: it has no snapshot of this name.
    """
    with _opened("delete a snapshot of", image, job) as daemon:
        node = daemon.open_image(image, _NODE)
        command = "blockdev-snapshot-delete-internal-sync"
        daemon.execute(command, patience=inf, device=node, name=name)


def add_passphrase(
    image: Image,
    new: bytes,
    *,
    slot: int | None = None,
    iter_time: int | None = None,
    job: Job[Any] | None = None,
) -> None:
    """Let one more passphrase open an encrypted image; `Image.secret` is one that does already.

    :param new: the passphrase, in UTF-8.
    :param slot: where to keep it, 0 to 7; None: where there is room.
    :param iter_time: how long to make it take to try a passphrase, in milliseconds.
    :raise OperationFailed: there is no room.
    :raise WrongPassphrase: `Image.secret` does not open it.
    """
    wanted: dict[str, object] = {"state": "active", "new-secret": _NEW}
    if slot is not None:
        wanted["keyslot"] = slot
    if iter_time is not None:
        wanted["iter-time"] = iter_time
    _amend(image, wanted, {_NEW: new}, job)


def remove_passphrase(image: Image, old: bytes, job: Job[Any] | None = None) -> None:
    """Have a passphrase no longer open an encrypted image.

    :param old: the passphrase, in UTF-8.
    :raise OperationFailed: no slot has it, or it is the only one.
    """
    _amend(image, {"state": "inactive", "old-secret": _OLD}, {_OLD: old}, job)


def _amend(
    image: Image, wanted: dict[str, object], secrets: dict[str, bytes], job: Job[Any] | None
) -> None:
    luks = {"driver": "luks", **wanted}
    qcow2 = {"driver": "qcow2", "encrypt": {"format": "luks", **wanted}}
    options = luks if image.format == "luks" else qcow2
    with _opened("change the passphrases of", image, job, secrets) as daemon:
        node = daemon.open_image(image, _NODE)
        daemon.run_job("x-blockdev-amend", figures=False, node_name=node, options=options)


def _opened(
    doing: str, image: Image, job: Job[Any] | None, secrets: dict[str, bytes] | None = None
) -> Daemon:
    return Daemon(
        f"{doing} an image of format '{image.format}'",
        tuple(image.files()),
        secrets={**image.secrets(_NODE), **(secrets or {})},
        job=job,
    )
