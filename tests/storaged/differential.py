"""The same calls to libvirt's daemon and to storaged, and their answers made comparable.

Each engine has a directory of its own for pools: a small file system in memory, so that the
figures of both pools agree to the byte. In what is given and in what is answered it is called
``$DIR``. What must differ is taken out: times of the volume's own file become ``=`` if they are
right, and the time of birth goes, because libvirt prints 0.
"""

from __future__ import annotations

import base64
import html
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from storaged.backend import WipeAlgorithm
from storaged.errors import StorageError
from storaged.poolhandle import Pool
from storaged.storage import Storage, open_storage
from storaged.volumehandle import Volume
from tests.storaged.libvirtd import libvirtd, require_libvirtd

#: The Python for which distributions package libvirt's binding.
SYSTEM_PYTHON = "/usr/bin/python3"
#: How large the file system of each engine's pools is.
SPACE = 256 << 20

_TIMES = re.compile(
    r"<path>(?P<path>[^<]*)</path>(?P<between>(?:(?!<path>).)*?)"
    r"<timestamps>\s*<atime>(?P<atime>-?[\d.]+)</atime>\s*<mtime>(?P<mtime>-?[\d.]+)</mtime>"
    r"\s*<ctime>(?P<ctime>-?[\d.]+)</ctime>\s*(?:<btime>-?[\d.]+</btime>\s*)?</timestamps>",
    re.DOTALL,
)


@dataclass(frozen=True)
class Failure:
    """An error as a client of libvirt sees it."""

    code: int
    message: str


class Libvirt:
    """The daemon, through its own Python binding."""

    def __init__(self, root: Path) -> None:
        uri = f"storage:///system?socket={root}/run/libvirt/libvirt-sock"
        script = Path(__file__).with_name("libvirtpeer.py")
        self._process = subprocess.Popen(
            [SYSTEM_PYTHON, str(script), uri],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def call(self, name: str, *arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([name, *arguments]), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        return Failure(**answer) if "code" in answer else answer["value"]

    def close(self) -> None:
        self._process.communicate()


class Storaged:
    """The library, answering the calls of `tests.storaged.libvirtpeer.Calls`."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def call(self, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self, name)(*arguments)
        except StorageError as err:
            return Failure(err.code, err.message)

    def _volume(self, pool: str, name: str) -> Volume:
        return self.storage.pool(pool).volume(name)

    def define(self, xml: str) -> str:
        return self.storage.define_pool(xml).name

    def create(self, xml: str, flags: int = 0) -> str:
        return self.storage.create_pool(xml, build=bool(flags & 1)).name

    def start(self, pool: str, flags: int = 0) -> None:
        self.storage.pool(pool).start(build=bool(flags & 1))

    def stop(self, pool: str) -> None:
        self.storage.pool(pool).stop()

    def build(self, pool: str, flags: int = 0) -> None:
        overwrite = {0: None, 4: False, 8: True}[flags]
        self.storage.pool(pool).build(overwrite=overwrite)

    def delete(self, pool: str) -> None:
        self.storage.pool(pool).delete()

    def undefine(self, pool: str) -> None:
        self.storage.pool(pool).undefine()

    def refresh(self, pool: str) -> None:
        self.storage.pool(pool).refresh()

    def set_autostart(self, pool: str, on: bool) -> None:
        self.storage.pool(pool).set_autostart(on)

    def flags(self, pool: str) -> list[bool]:
        found = self.storage.pool(pool)
        return [found.active, found.persistent, found.autostart]

    def pools(self) -> list[str]:
        return [pool.name for pool in self.storage.pools()]

    def pool_xml(self, pool: str, inactive: bool = False) -> str:
        return self.storage.pool(pool).xml(inactive=inactive)

    def pool_info(self, pool: str) -> list[int]:
        info = self.storage.pool(pool).info()
        space = info.space
        return [info.state, space.capacity, space.allocation, space.available]

    def pool_by_target(self, path: str) -> str:
        return self.storage.pool_by_target(path).name

    def pool_by_uuid(self, uuid: str) -> str:
        return self.storage.pool_by_uuid(uuid).name

    def volumes(self, pool: str) -> list[str]:
        return self.storage.pool(pool).names()

    def volume_xml(self, pool: str, name: str) -> str:
        return self._volume(pool, name).xml()

    def volume_info(self, pool: str, name: str) -> list[int]:
        info = self._volume(pool, name).info()
        return [info.type.number, info.capacity, info.allocation, info.physical]

    def volume_create(self, pool: str, xml: str, flags: int = 0) -> str:
        metadata = bool(flags & 1)
        return self.storage.pool(pool).create_volume(xml, preallocate_metadata=metadata).name

    def volume_clone(self, pool: str, xml: str, of: str, source: str, flags: int = 0) -> str:
        origin = self._volume(of, source)
        target: Pool = self.storage.pool(pool)
        return target.clone_volume(
            xml, origin, reflink=bool(flags & 2), preallocate_metadata=bool(flags & 1)
        ).name

    def volume_delete(self, pool: str, name: str) -> None:
        self._volume(pool, name).delete()

    def volume_resize(self, pool: str, name: str, capacity: int, flags: int = 0) -> None:
        self._volume(pool, name).resize(
            capacity, allocate=bool(flags & 1), delta=bool(flags & 2), shrink=bool(flags & 4)
        )

    def volume_wipe(self, pool: str, name: str, algorithm: int = 0) -> None:
        self._volume(pool, name).wipe(WipeAlgorithm(algorithm))

    def volume_upload(
        self, pool: str, name: str, data: str, offset: int = 0, length: int = 0
    ) -> None:
        sink = self._volume(pool, name).open_upload(offset, length)
        try:
            sink.write(base64.b64decode(data))
        except BaseException:
            sink.abort()
            raise
        sink.finish()

    def volume_download(self, pool: str, name: str, offset: int = 0, length: int = 0) -> str:
        source = self._volume(pool, name).open_download(offset, length)
        data = bytearray()
        try:
            while piece := source.read(262120):
                assert isinstance(piece, bytes)  # a hole comes only where one is asked for
                data += piece
        finally:
            source.close()
        return base64.b64encode(data).decode()

    def by_path(self, path: str) -> list[str]:
        volume = self.storage.volume_by_path(path)
        return [volume.pool.name, volume.name, volume.key]

    def by_key(self, key: str) -> list[str]:
        volume = self.storage.volume_by_key(key)
        return [volume.pool.name, volume.name, volume.path]


@dataclass
class Side:
    """An engine and the directory of its pools."""

    engine: Libvirt | Storaged
    directory: Path

    def call(self, name: str, *arguments: Any) -> Any:
        given = [self._inward(argument) for argument in arguments]
        return self._outward(self.engine.call(name, *given))

    def _inward(self, value: Any) -> Any:
        return value.replace("$DIR", str(self.directory)) if isinstance(value, str) else value

    def _outward(self, value: Any) -> Any:
        if isinstance(value, Failure):
            return Failure(value.code, self._outward(value.message))
        if isinstance(value, list):
            return [self._outward(item) for item in value]
        if not isinstance(value, str):
            return value
        return _TIMES.sub(_checked_times, value).replace(str(self.directory), "$DIR")


def _checked_times(match: re.Match[str]) -> str:
    try:
        status = Path(html.unescape(match["path"])).stat()
    except FileNotFoundError:  # an escaped name
        return match[0]
    told = []
    for name in ("atime", "mtime", "ctime"):
        seconds, nanoseconds = divmod(getattr(status, f"st_{name}_ns"), 10**9)
        right = f"{seconds}.{nanoseconds:09}" if nanoseconds else f"{seconds}"
        told.append("=" if match[name] == right else match[name])
    return f"<path>{match['path']}</path>{match['between']}<timestamps {' '.join(told)}/>"


class Pair:
    """Libvirt's daemon and storaged side by side."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._running = ExitStack()
        self.theirs: Side
        self.ours: Side

    def start(self) -> None:
        """Start both engines on the states they have."""
        with ExitStack() as running:
            running.enter_context(libvirtd(self.base / "libvirt", secrets=True))
            peer = Libvirt(self.base / "libvirt")
            running.callback(peer.close)
            storage = running.enter_context(
                open_storage(
                    self.base / "storaged", autostart=True, lock_timeout=0, durability="none"
                )
            )
            self.theirs = Side(peer, self.base / "pools-a")
            self.ours = Side(Storaged(storage), self.base / "pools-b")
            self._running = running.pop_all()

    def stop(self) -> None:
        self._running.close()

    def restart(self) -> None:
        """End both engines and start them again."""
        self.stop()
        self.start()

    def both(self, name: str, *arguments: Any) -> tuple[Any, Any]:
        """Return what libvirt and what storaged answers."""
        return self.theirs.call(name, *arguments), self.ours.call(name, *arguments)

    def same(self, name: str, *arguments: Any) -> Any:
        """Return the answer of both, which must be one."""
        theirs, ours = self.both(name, *arguments)
        assert ours == theirs, f"{name}{arguments}"
        return ours

    def differs(self, why: str, name: str, *arguments: Any) -> tuple[Any, Any]:
        """Return both answers, which must not be one.

        :param why: the reason, which the test that expects them states.
        """
        theirs, ours = self.both(name, *arguments)
        assert ours != theirs, f"{name}{arguments} is the same now, but: {why}"
        return theirs, ours

    def refuses(self, why: str, codes: tuple[int, int], name: str, *arguments: Any) -> str:
        """Return our text where both refuse, but with other texts: libvirt's code and ours."""
        theirs, ours = self.differs(why, name, *arguments)
        assert isinstance(theirs, Failure), theirs
        assert isinstance(ours, Failure), ours
        assert (theirs.code, ours.code) == codes
        return ours.message

    def refuses_alone(self, why: str, name: str, *arguments: Any) -> Failure:
        """Return our error where libvirt does what is asked, or says it does."""
        theirs, ours = self.differs(why, name, *arguments)
        assert not isinstance(theirs, Failure), theirs
        assert isinstance(ours, Failure), ours
        return ours

    def pool(self, name: str, number: int) -> None:
        """Have a started pool over a new directory of its name."""
        self.same("define", pool_document(name, number))
        self.same("build", name)
        self.same("start", name)

    def volume(self, pool: str, name: str) -> None:
        """Have one description and one set of figures of a volume."""
        self.same("volume_xml", pool, name)
        self.same("volume_info", pool, name)

    def on_disk(self, do: Callable[[Path], object], *parts: str) -> None:
        """Do something to the path at the same place of both engines' directories."""
        for side in (self.theirs, self.ours):
            do(side.directory.joinpath(*parts))


@contextmanager
def open_pair(base: Path) -> Iterator[Pair]:
    """Run both engines on states and directories of their own below *base*."""
    require_libvirtd()
    has_python = Path(SYSTEM_PYTHON).exists()
    binding = [SYSTEM_PYTHON, "-c", "import libvirt"]
    if not has_python or subprocess.run(binding, capture_output=True).returncode:
        pytest.skip("libvirt's Python binding is not installed (Debian: python3-libvirt)")
    with ExitStack() as stack:
        for name in ("pools-a", "pools-b"):
            directory = base / name
            directory.mkdir()
            options = f"size={SPACE},mode=755,noatime"
            mount = ["mount", "-t", "tmpfs", "-o", options, "storaged-test", str(directory)]
            if subprocess.run(mount, capture_output=True).returncode:
                pytest.skip("this machine does not let us mount a file system in memory")
            stack.callback(subprocess.run, ["umount", "--lazy", str(directory)], check=True)
        pair = Pair(base)
        pair.start()
        stack.callback(lambda: pair.stop())
        yield pair


def without(text: Any, *elements: str) -> Any:
    """Return XML without these elements, and anything else as it is."""
    if not isinstance(text, str):
        return text
    for element in elements:
        text = re.sub(rf" *<{element}\b(?:[^>]*/>|.*?</{element}>)\n", "", text, flags=re.DOTALL)
    return text


def pool_document(name: str, number: int, directory: str = "", more: str = "") -> str:
    """Return the XML of a pool over a directory of its own name, or *directory*."""
    return (
        f"<pool type='dir'><name>{name}</name><uuid>{uuid_of(number)}</uuid>"
        f"<target><path>$DIR/{directory or name}</path>{more}</target></pool>"
    )


def uuid_of(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012x}"


def volume_document(name: str, capacity: int | str, *, top: str = "", target: str = "") -> str:
    """Return the XML of a volume; *top* stands beside the target, *target* in it."""
    return (
        f"<volume><name>{name}</name><capacity>{capacity}</capacity>{top}"
        f"<target>{target}</target></volume>"
    )
