"""The storage calls of libvirt's own Python binding, over standard input and output.

The binding comes with the system's Python only, so this runs there, as a program of its own: each
line of the input is ``[call, argument...]`` in JSON, each line of the output is ``{"value": ...}``
or ``{"code": ..., "message": ...}`` of the error that libvirt answered.
"""

from __future__ import annotations

import base64
import importlib
import json
import sys
from typing import Any

libvirt: Any = importlib.import_module("libvirt")


class Calls:
    """One method a call; pools and volumes are named by their names."""

    def __init__(self, uri: str) -> None:
        self.connection = libvirt.open(uri)

    def _pool(self, name: str) -> Any:
        return self.connection.storagePoolLookupByName(name)

    def _volume(self, pool: str, name: str) -> Any:
        return self._pool(pool).storageVolLookupByName(name)

    def define(self, xml: str) -> str:
        return str(self.connection.storagePoolDefineXML(xml).name())

    def create(self, xml: str, flags: int = 0) -> str:
        return str(self.connection.storagePoolCreateXML(xml, flags).name())

    def start(self, pool: str, flags: int = 0) -> None:
        self._pool(pool).create(flags)

    def stop(self, pool: str) -> None:
        self._pool(pool).destroy()

    def build(self, pool: str, flags: int = 0) -> None:
        self._pool(pool).build(flags)

    def delete(self, pool: str) -> None:
        self._pool(pool).delete()

    def undefine(self, pool: str) -> None:
        self._pool(pool).undefine()

    def refresh(self, pool: str) -> None:
        self._pool(pool).refresh()

    def set_autostart(self, pool: str, on: bool) -> None:
        self._pool(pool).setAutostart(on)

    def flags(self, pool: str) -> list[bool]:
        found = self._pool(pool)
        return [bool(found.isActive()), bool(found.isPersistent()), bool(found.autostart())]

    def pools(self) -> list[str]:
        return sorted(pool.name() for pool in self.connection.listAllStoragePools())

    def pool_xml(self, pool: str, inactive: bool = False) -> str:
        flags = libvirt.VIR_STORAGE_XML_INACTIVE if inactive else 0
        return str(self._pool(pool).XMLDesc(flags))

    def pool_info(self, pool: str) -> list[int]:
        return list(self._pool(pool).info())

    def pool_by_target(self, path: str) -> str:
        return str(self.connection.storagePoolLookupByTargetPath(path).name())

    def pool_by_uuid(self, uuid: str) -> str:
        return str(self.connection.storagePoolLookupByUUIDString(uuid).name())

    def volumes(self, pool: str) -> list[str]:
        return sorted(volume.name() for volume in self._pool(pool).listAllVolumes())

    def volume_xml(self, pool: str, name: str) -> str:
        return str(self._volume(pool, name).XMLDesc())

    def volume_info(self, pool: str, name: str) -> list[int]:
        volume = self._volume(pool, name)
        physical = volume.infoFlags(libvirt.VIR_STORAGE_VOL_GET_PHYSICAL)[2]
        return [*volume.info(), physical]

    def volume_create(self, pool: str, xml: str, flags: int = 0) -> str:
        return str(self._pool(pool).createXML(xml, flags).name())

    def volume_clone(self, pool: str, xml: str, of: str, source: str, flags: int = 0) -> str:
        origin = self._volume(of, source)
        return str(self._pool(pool).createXMLFrom(xml, origin, flags).name())

    def volume_delete(self, pool: str, name: str) -> None:
        self._volume(pool, name).delete()

    def volume_resize(self, pool: str, name: str, capacity: int, flags: int = 0) -> None:
        self._volume(pool, name).resize(capacity, flags)

    def volume_wipe(self, pool: str, name: str, algorithm: int = 0) -> None:
        self._volume(pool, name).wipePattern(algorithm)

    def volume_upload(
        self, pool: str, name: str, data: str, offset: int = 0, length: int = 0
    ) -> None:
        stream = self.connection.newStream()
        self._volume(pool, name).upload(stream, offset, length)
        left = base64.b64decode(data)
        while left:
            left = left[stream.send(left[:262120]) :]
        stream.finish()

    def volume_download(self, pool: str, name: str, offset: int = 0, length: int = 0) -> str:
        stream = self.connection.newStream()
        self._volume(pool, name).download(stream, offset, length)
        data = bytearray()
        while piece := stream.recv(262120):
            data += piece
        stream.finish()
        return base64.b64encode(data).decode()

    def by_path(self, path: str) -> list[str]:
        volume = self.connection.storageVolLookupByPath(path)
        return [volume.storagePoolLookupByVolume().name(), volume.name(), volume.key()]

    def by_key(self, key: str) -> list[str]:
        volume = self.connection.storageVolLookupByKey(key)
        return [volume.storagePoolLookupByVolume().name(), volume.name(), volume.path()]


def main() -> None:
    """Answer until the input ends."""
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    calls = Calls(sys.argv[1])
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            answer = {"value": getattr(calls, name)(*arguments)}
        except libvirt.libvirtError as err:
            answer = {"code": err.get_error_code(), "message": err.get_error_message()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
