"""What a connection calls back for: changes of pools and secrets, and its own end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from storaged.client.link import CloseReason, Link
from storaged.libvirt import errorconstants as numbers
from storaged.libvirt.errors import libvirtError, refuse, refuse_argument, reporting
from storaged.libvirt.handle import Handle
from storaged.libvirt.process import PROCESS
from storaged.libvirt.wakeup import Wakeup
from storaged.rpc import remote, secret, storage
from storaged.rpc.program import AnyProcedure, Procedure
from storaged.rpc.record import Record, Void
from storaged.rpc.remoteerror import RemoteError

if TYPE_CHECKING:
    from storaged.libvirt.connection import virConnect

#: The numbers of the two events that there are of pools, and of secrets.
_EVENTS: Final = (0, 1)
_INVALID: Final = "Requested operation is not valid: %s"
_OTHER: Final = "A different callback was requested"


class Topic:
    """What registrations are about: the calls that begin and end them.

    :param domain: the part of libvirt that refuses them.
    """

    __slots__ = ("deregister", "domain", "register")

    def __init__(
        self,
        register: Procedure[Any, storage.CallbackId],
        deregister: Procedure[storage.CallbackId, Void],
        domain: int,
    ) -> None:
        self.register, self.deregister, self.domain = register, deregister, domain


POOLS: Final = Topic(storage.EVENT_REGISTER, storage.EVENT_DEREGISTER, numbers.VIR_FROM_STORAGE)
SECRETS: Final = Topic(secret.EVENT_REGISTER, secret.EVENT_DEREGISTER, numbers.VIR_FROM_SECRET)

#: A topic, an event's number, and the uuid of the one object it is about, or None.
_Key = tuple[Topic, int, bytes | None]


class _Registration:
    __slots__ = ("callback", "conn", "key", "local", "opaque", "remote")

    def __init__(
        self, conn: virConnect, local: int, key: _Key, callback: Callable[..., object], opaque: Any
    ) -> None:
        self.conn, self.local, self.key = conn, local, key
        self.callback, self.opaque = callback, opaque
        self.remote = -1


class Registrations:
    """The callbacks of one connection. Each registration holds the connection open."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        handle.on_end = self.close
        handle.on_lost = self._lost
        self._lock = threading.RLock()
        self._wakeup: Wakeup | None = None
        self._forget: Callable[[], None] | None = None
        self._next = 0
        self._found: dict[int, _Registration] = {}
        self._close: tuple[virConnect, Callable[..., object], Any] | None = None
        #: stays true when the callback was called: it is to be unregistered all the same
        self._close_registered = False
        self._forget_close: Callable[[], None] | None = None

    def add(
        self,
        conn: virConnect,
        topic: Topic,
        event: int,
        about: storage.StoragePool | secret.Secret | None,
        callback: Callable[..., object],
        opaque: Any,
    ) -> int:
        """Register for an event of one object, or of all; return the registration's number.

        :raise libvirtError: there is no event loop, no such event, or the same is registered.
        """
        PROCESS.reset()
        function = topic.register.name
        if event not in _EVENTS:
            raise libvirtError(f"{function}() failed")
        wakeup = self._woken(function)
        key = (topic, event, None if about is None else about.uuid)
        with self._lock:
            if any(each.key == key for each in self._found.values()):
                detail = "event callback already tracked"
                code, domain = numbers.VIR_ERR_INVALID_ARG, numbers.VIR_FROM_NONE
                refuse(code, domain, "invalid argument: %s", detail, function)
            if self._forget is None:
                self._forget = self._handle.link.on_event(
                    lambda procedure, record: wakeup.post(lambda: self._tell(procedure, record))
                )
            made = _Registration(conn, self._next, key, callback, opaque)
            args = topic.register.args(event, about)
            made.remote = self._handle.call(topic.register, args).callback_id
            self._next += 1
            self._found[made.local] = made
            self._handle.hold()
        return made.local

    def remove(self, topic: Topic, local: int) -> None:
        """End a registration.

        :raise libvirtError: there is none with this number.
        """
        PROCESS.reset()
        function = topic.deregister.name
        if local < 0:
            refuse_argument(function, "callbackID", "must be zero or greater", topic.domain)
        with self._lock:
            found = self._found.pop(local, None)
        if found is None:
            detail = f"event callback id {local} not registered"
            code, domain = numbers.VIR_ERR_INVALID_ARG, numbers.VIR_FROM_NONE
            refuse(code, domain, "invalid argument: %s", detail, function)
        try:
            ending = found.key[0].deregister
            self._handle.call(ending, storage.CallbackId(found.remote))
        finally:
            self._release()

    def set_close(self, conn: virConnect, callback: Callable[..., object], opaque: Any) -> None:
        """Register for the end of the connection.

        :raise libvirtError: that is registered already.
        """
        function = "virConnectRegisterCloseCallback"
        PROCESS.reset()
        if self._close_registered:
            detail = "A close callback is already registered"
            code, domain = numbers.VIR_ERR_OPERATION_INVALID, numbers.VIR_FROM_REMOTE
            refuse(code, domain, _INVALID, detail, function)
        with reporting(function):
            self._handle.link.call(remote.REGISTER_CLOSE_CALLBACK, Void())
        self._close, self._close_registered = (conn, callback, opaque), True
        self._handle.hold()
        if PROCESS.loop is not None:
            wakeup = self._woken(function)
            self._forget_close = self._handle.link.on_close(
                lambda reason: wakeup.post(lambda: self._closed(reason))
            )

    def unset_close(self) -> None:
        """End the registration for the end of the connection.

        :raise libvirtError: there is none.
        """
        function = "virConnectUnregisterCloseCallback"
        PROCESS.reset()
        if not self._close_registered:
            code, domain = numbers.VIR_ERR_OPERATION_INVALID, numbers.VIR_FROM_REMOTE
            refuse(code, domain, _INVALID, _OTHER, function)
        with reporting(function):
            self._handle.link.call(remote.UNREGISTER_CLOSE_CALLBACK, Void())
        found, self._close, self._close_registered = self._close, None, False
        if self._forget_close is not None:
            self._forget_close()
            self._forget_close = None
        if found is not None:
            self._release()

    def close(self) -> None:
        """End all when the link ends; nothing is called back any more."""
        if self._forget is not None:
            self._forget()
        if self._forget_close is not None:
            self._forget_close()
        if self._wakeup is not None:
            self._wakeup.close()
        self._found.clear()
        self._close = None

    def _woken(self, function: str) -> Wakeup:
        if self._wakeup is None:
            if PROCESS.loop is None:
                detail = "could not initialize domain event timer"
                code, domain = numbers.VIR_ERR_INTERNAL_ERROR, numbers.VIR_FROM_NONE
                refuse(code, domain, "internal error: %s", detail, function)
            self._wakeup = Wakeup(PROCESS.loop)
        return self._wakeup

    def _release(self) -> None:
        self._handle.release()

    def _tell(self, procedure: AnyProcedure, record: Record) -> None:
        """Call back for an event that came."""
        if isinstance(record, storage.LifecycleEvent | storage.RefreshEvent):
            topic = POOLS
        elif isinstance(record, secret.LifecycleEvent | secret.ValueChangedEvent):
            topic = SECRETS
        else:
            return
        with self._lock:  # a registration under way is complete after this
            found = [
                each
                for each in self._found.values()
                if each.remote == record.callback_id and each.key[0] is topic
            ]
        for each in found:
            about: object
            if isinstance(record, storage.LifecycleEvent | storage.RefreshEvent):
                about = each.conn._pool(record.pool, self._handle)
            else:
                about = each.conn._secret(record.secret, self._handle)
            if isinstance(record, storage.LifecycleEvent | secret.LifecycleEvent):
                each.callback(each.conn, about, record.event, record.detail, each.opaque)
            else:
                each.callback(each.conn, about, each.opaque)

    def _lost(self, error: RemoteError) -> None:
        """Call back where no event loop does: whoever finds the link ended does it."""
        if self._forget_close is None:
            broken = error.code == numbers.VIR_ERR_RPC
            self._closed(CloseReason.ERROR if broken else CloseReason.EOF)

    def _closed(self, reason: int) -> None:
        if self._close is None:
            return
        (conn, callback, opaque), self._close = self._close, None
        try:
            callback(conn, reason, opaque)
        finally:
            self._release()


def check_loop(link: Link) -> None:
    """Refuse signs of life where no event loop would see that they stay away.

    :raise libvirtError: no event loop is registered, or the link has ended.
    """
    PROCESS.reset()
    if PROCESS.loop is None or not link.alive:
        detail = (
            "the caller doesn't support keepalive protocol;"
            " perhaps it's missing event loop implementation"
        )
        code, domain = numbers.VIR_ERR_INTERNAL_ERROR, numbers.VIR_FROM_REMOTE
        refuse(code, domain, "internal error: %s", detail, "virConnectSetKeepAlive")
