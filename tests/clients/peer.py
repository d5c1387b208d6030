"""Runs functions of a module of this folder under the system's Python, where libvirt's binding is.

Started as a program: its arguments are the module's file, the daemon's URI, its process and its
directory. Each line of the input is ``[function, argument...]`` in JSON; each line of the output
``{"value": ...}``, or ``{"failed": ...}`` with the trace of what went wrong.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Client:
    """What a scenario is given: the binding, one connection, and where it may work.

    :param directory: the daemon's own; pools go below it.
    """

    def __init__(self, libvirt: Any, uri: str, pid: int, directory: Path) -> None:
        self.libvirt = libvirt
        self.uri = uri
        self.pid = pid
        self.directory = directory
        self.connection: Any = None

    def connect(self) -> Any:
        """Return a further connection."""
        return self.libvirt.open(self.uri)

    def pool_xml(self, name: str) -> str:
        """Return the description of a pool over a directory of its own name."""
        return (
            f"<pool type='dir'><name>{name}</name>"
            f"<target><path>{self.directory / name}</path></target></pool>"
        )

    def pool(self, name: str) -> Any:
        """Return a new pool that is defined, built and started."""
        found = self.connection.storagePoolDefineXML(self.pool_xml(name))
        found.build()
        found.create()
        return found

    def volume(self, pool: Any, name: str, capacity: int | str, format: str = "raw") -> Any:
        """Return a new volume that takes no space."""
        return pool.createXML(volume_xml(name, capacity, format=format))

    def answer(self, call: Callable[..., Any], *arguments: object) -> Any:
        """Return what a call returns, or code, domain and text of the error that it ends with."""
        try:
            value = call(*arguments)
        except self.libvirt.libvirtError as err:
            return [err.get_error_code(), err.get_error_domain(), err.get_error_message()]
        named = isinstance(value, (self.libvirt.virStoragePool, self.libvirt.virStorageVol))
        return f"<{value.name()}>" if named else value

    def error(self, call: Callable[..., object], *arguments: object) -> list[Any]:
        """Return code, domain and text of the error that a call must end with."""
        answer = self.answer(call, *arguments)
        failed = isinstance(answer, list) and len(answer) == 3 and isinstance(answer[2], str)
        assert failed, f"{call} returned {answer!r}"
        return list(answer)

    def upload(self, volume: Any, data: bytes, offset: int = 0, length: int = 0) -> None:
        """Write *data* into a volume through a stream of a new one's connection."""
        stream = volume.connect().newStream()
        volume.upload(stream, offset, length)
        send(stream, data)
        stream.finish()

    def download(self, volume: Any, offset: int = 0, length: int = 0) -> bytes:
        """Read a volume, or a part of it, through a stream."""
        stream = volume.connect().newStream()
        volume.download(stream, offset, length)
        data = receive(stream)
        stream.finish()
        return data

    def run(self, scenario: Callable[..., object], *arguments: object) -> object:
        """Call a scenario with a connection that is its own."""
        self.connection = self.connect()
        try:
            return scenario(self, *arguments)
        finally:
            self.connection.close()
            self.connection = None


def send(stream: Any, data: bytes) -> None:
    """Send all of *data*."""
    left = memoryview(data)
    while left:
        left = left[stream.send(bytes(left[:262120])) :]


def receive(stream: Any) -> bytes:
    """Return all that is to come."""
    data = bytearray()
    while piece := stream.recv(262120):
        data += piece
    return bytes(data)


def volume_xml(
    name: str, capacity: int | str, *, format: str = "raw", top: str = "", target: str = ""
) -> str:
    """Return the description of a volume; *top* stands beside the target, *target* in it."""
    return (
        f"<volume><name>{name}</name><capacity>{capacity}</capacity>"
        f"<allocation>0</allocation>{top}"
        f"<target><format type='{format}'/>{target}</target></volume>"
    )


def main() -> None:
    """Answer until the input ends."""
    libvirt: Any = importlib.import_module("libvirt")
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    file, uri, pid, directory = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("scenarios", file)
    assert spec is not None
    assert spec.loader is not None
    scenarios = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scenarios)
    client = Client(libvirt, uri, int(pid), Path(directory))
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            answer = {"value": client.run(getattr(scenarios, name), *arguments)}
        except Exception:
            answer = {"failed": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
