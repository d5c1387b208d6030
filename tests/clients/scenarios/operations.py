"""Whatever is asked for: one operation after the other, each with its answer."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from typing import Any

from tests.clients.peer import Client


def perform(client: Client, operations: list[list[Any]]) -> object:
    """Do all *operations*, each a name and arguments; return what each answered."""
    return [client.answer(_do, client, *operation) for operation in operations]


def _do(client: Client, name: str, *arguments: Any) -> Any:
    operation = _OPERATIONS.get(name)
    if operation is not None:
        return operation(client, *arguments)
    kind, _, method = name.partition(".")
    if kind == "connection":
        return _plain(getattr(client.connection, method)(*arguments))
    pool = client.connection.storagePoolLookupByName(arguments[0])
    if kind == "pool":
        return _plain(getattr(pool, method)(*arguments[1:]))
    volume = pool.storageVolLookupByName(arguments[1])
    return _plain(getattr(volume, method)(*arguments[2:]))


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        plain = [_plain(item) for item in value]
        return plain if all(isinstance(item, int) for item in plain) else sorted(plain)
    return value.name() if hasattr(value, "name") else value


def _upload(client: Client, pool: str, name: str, data: str, offset: int, length: int) -> Any:
    volume = client.connection.storagePoolLookupByName(pool).storageVolLookupByName(name)
    client.upload(volume, base64.b64decode(data), offset, length)
    time.sleep(0.02)  # libvirt refreshes the pool in the background
    return "uploaded"


def _download(client: Client, pool: str, name: str, offset: int, length: int) -> Any:
    volume = client.connection.storagePoolLookupByName(pool).storageVolLookupByName(name)
    return base64.b64encode(client.download(volume, offset, length)).decode()


def _clone(client: Client, pool: str, xml: str, of: str, source: str, flags: int) -> Any:
    origin = client.connection.storagePoolLookupByName(of).storageVolLookupByName(source)
    target = client.connection.storagePoolLookupByName(pool)
    return target.createXMLFrom(xml, origin, flags).name()


def _owner(client: Client, path: str) -> Any:
    volume = client.connection.storageVolLookupByPath(path)
    return [volume.name(), volume.storagePoolLookupByVolume().name()]


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "upload": _upload,
    "download": _download,
    "clone": _clone,
    "owner": _owner,
}
