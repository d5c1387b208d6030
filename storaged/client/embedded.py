"""The engines that this process has opened for its links.

A state directory has one engine, and its lock keeps out all others, of the same process too. So the
links of one process that lead to the same directory share one engine, as clients share a daemon: it
is opened with the first of them and closed with the last.
"""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from storaged.client.link import RemoteFailure
from storaged.client.locallink import LocalLink
from storaged.client.localstream import engine_failures
from storaged.client.uri import URI
from storaged.errors import Domain, InvalidArgument
from storaged.service import Service

#: A process, a root without symbolic links, whether the engine is an ordinary user's, and whether
#: it only reads. A child that was forked has the threads of no engine, and so none of its parent's.
_Place = tuple[int, str, bool, bool]


class SharedEngine:
    """An engine that is open as long as somebody uses it."""

    def __init__(self, root: str, *, session: bool, readonly: bool) -> None:
        self._root = root
        self._session = session
        self._readonly = readonly
        #: held while the engine opens or closes: whoever comes meanwhile waits for the outcome
        self._lock = threading.Lock()
        self._users = 0
        self._service: Service | None = None
        self._owned = ExitStack()

    def join(self) -> Service:
        """Count one user more; the first one opens the engine.

        :raise StorageError: it cannot be opened. Nobody uses it then.
        """
        with self._lock:
            if self._service is None:
                self._service = self._open()
            self._users += 1
            return self._service

    def join_open(self) -> Service | None:
        """Count one user more of an engine that is open; return None where it is not."""
        with self._lock:
            if self._service is not None:
                self._users += 1
            return self._service

    def leave(self) -> None:
        """Count one user less; the last one closes the engine."""
        with self._lock:
            self._users -= 1
            if not self._users:
                self._service = None
                self._owned.close()

    def _open(self) -> Service:
        from storaged.driver import open_driver
        from storaged.paths import Paths

        paths = Paths.below(self._root, session=self._session)
        with ExitStack() as stack:
            service = Service(stack.enter_context(open_driver(paths, readonly=self._readonly)))
            stack.callback(service.close)
            self._owned = stack.pop_all()
        return service


class Engines:
    """All shared engines, by where they are.

    It holds none of them: they are there as long as a link, or who is about to open one, has them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: WeakValueDictionary[_Place, SharedEngine] = WeakValueDictionary()

    def join(self, root: str, *, session: bool, readonly: bool) -> tuple[SharedEngine, Service]:
        """Use the engine below *root*, opened if it is not.

        Who only reads uses the engine of those who write, where there is one; else one that takes
        no lock, so that it keeps nobody out who comes to write.

        :returns: the engine, for the caller to leave, and its service.
        :raise StorageError: it cannot be opened.
        """
        if readonly:
            writer = self._engine(root, session=session, readonly=False)
            service = writer.join_open()
            if service is not None:
                return writer, service
        engine = self._engine(root, session=session, readonly=readonly)
        return engine, engine.join()

    def _engine(self, root: str, *, session: bool, readonly: bool) -> SharedEngine:
        place = (os.getpid(), os.path.realpath(root), session, readonly)
        with self._lock:
            found = self._found.get(place)
            if found is None:
                found = self._found[place] = SharedEngine(root, session=session, readonly=readonly)
            return found


#: The engines of this process. There can be but one record of them: two links to one directory
#: know nothing of each other, and the lock on it is the process's.
ENGINES: Final = Engines()


def open_embedded(uri: URI, *, readonly: bool = False) -> LocalLink:
    """Open a link to the engine below the directory that the parameter *root* names.

    A link that only reads, and was there before the first that writes, sees what was there then.

    :raise RemoteFailure: there is no such parameter, or no engine to be had there.
    """
    root = uri.get("root")
    if not root or not Path(root).is_absolute():
        text = "URI must have an absolute path as its parameter 'root'"
        raise RemoteFailure.of(InvalidArgument(text, domain=Domain.URI))
    with engine_failures(), ExitStack() as stack:
        session = uri.get_flag("session")
        engine, service = ENGINES.join(root, session=session, readonly=readonly)
        stack.callback(engine.leave)
        return LocalLink(service, uri.text, readonly=readonly, owned=stack)
