"""Asking polkit whether a process may use the daemon, over D-Bus.

Everything here waits, and is called on a worker thread. jeepney speaks D-Bus; where it is missing,
polkit cannot be asked and nobody is let in.

Sources: the D-Bus interface ``org.freedesktop.PolicyKit1.Authority``; libvirt's actions and errors.
"""

from __future__ import annotations

import os
from typing import Any

from storaged.errors import Domain, InternalError
from storaged.rpc.errors import AuthCancelled, AuthFailed, AuthUnavailable
from storaged.rpc.identity import Identity

MANAGE = "org.libvirt.unix.manage"
MONITOR = "org.libvirt.unix.monitor"

_NAME = "org.freedesktop.PolicyKit1"
_PATH = "/org/freedesktop/PolicyKit1/Authority"
_INTERFACE = "org.freedesktop.PolicyKit1.Authority"

#: The user may be asked for a password.
_ALLOW_INTERACTION = 1
#: How long a user may take for that, and a bus for an answer of its own, in seconds. The first is
#: less than a client may take to prove who it is, so that it hears why it was not let in.
PATIENCE = 50.0
_BUS_PATIENCE = 10.0

INSTALL = (
    "Install polkit with the actions of org.libvirt.unix.policy, and jeepney "
    "(pip install 'storaged[polkit]'); or set auth_unix_rw and auth_unix_ro to \"none\" together "
    "with unix_sock_group and unix_sock_rw_perms."
)


def unavailable() -> str | None:
    """Say why polkit cannot be asked on this host; None if it can."""
    try:
        with _Bus() as bus:
            owned = bus.call("NameHasOwner", "s", (_NAME,))
            if owned != (True,) and _NAME not in bus.call("ListActivatableNames", None, ())[0]:
                return f"polkit is not installed: nobody on the system bus is {_NAME}"
            (actions,) = bus.ask("EnumerateActions", "s", ("",), _BUS_PATIENCE)
    except (InternalError, TimeoutError) as err:
        return err.detail if isinstance(err, InternalError) else "polkit does not answer"
    missing = {MANAGE, MONITOR}.difference(action[0] for action in actions)
    if missing:
        return f"polkit does not know {', '.join(sorted(missing))}"
    return None


class Polkit:
    """polkit as the one who decides who may use the daemon.

    :param patience: how long a user may take to give a password, in seconds.
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self._patience = patience

    def check(self, identity: Identity, *, readonly: bool) -> None:
        """Return if polkit lets a process use the daemon.

        The user may be asked for a password.

        :raise AuthCancelled: the user dismissed the question.
        :raise AuthUnavailable: a password is needed, and there is no agent to ask for it.
        :raise AuthFailed: the policy says no, or the process cannot be named to polkit.
        :raise InternalError: the bus or polkit does not answer.
        """
        action = MONITOR if readonly else MANAGE
        if identity.pid is None or identity.started is None or identity.uid is None:
            # A process id alone may be another's by now.
            raise AuthFailed("the process is gone or not visible", domain=Domain.POLKIT)
        subject = (
            "unix-process",
            {
                "pid": ("u", identity.pid),
                "start-time": ("t", identity.started),
                "uid": ("i", _signed(identity.uid)),
            },
        )
        cancellation = f"storaged-{os.getpid()}-{os.urandom(8).hex()}"
        arguments: tuple[Any, ...] = (subject, action, {}, _ALLOW_INTERACTION, cancellation)
        with _Bus() as bus:
            try:
                ((authorized, challenge, details),) = bus.ask(
                    "CheckAuthorization", "(sa{sv})sa{ss}us", arguments, self._patience
                )
            except TimeoutError as err:
                bus.ask("CancelCheckAuthorization", "s", (cancellation,), None)
                raise AuthCancelled(
                    f"no answer within {self._patience:g} s", domain=Domain.POLKIT
                ) from err
        if authorized:
            return
        if details.get("polkit.dismissed"):
            raise AuthCancelled("user cancelled authentication process", domain=Domain.POLKIT)
        if challenge:
            raise AuthUnavailable(
                f"no polkit agent available to authenticate action '{action}'", domain=Domain.POLKIT
            )
        raise AuthFailed("access denied by policy", domain=Domain.POLKIT)


def _signed(uid: int) -> int:
    return uid - (1 << 32) if uid >= 1 << 31 else uid


class _Bus:
    """A connection to the system bus, in a ``with`` block.

    :raise InternalError: whatever goes wrong with it.
    """

    def __init__(self) -> None:
        self._connection: Any = None

    def __enter__(self) -> _Bus:
        try:
            from jeepney.io.blocking import open_dbus_connection  # type: ignore[import-untyped]
        except ImportError as err:
            raise _trouble("the Python package jeepney is not installed") from err
        try:
            self._connection = open_dbus_connection("SYSTEM", auth_timeout=_BUS_PATIENCE)
        except Exception as err:  # sockets, authentication, an address nobody can parse
            raise _trouble(
                f"cannot connect to the system bus: {err or type(err).__name__}"
            ) from err
        return self

    def __exit__(self, *unused: object) -> None:
        if self._connection is not None:
            self._connection.close()

    def call(self, method: str, signature: str | None, arguments: tuple[Any, ...]) -> Any:
        """Call a method of the bus itself."""
        from jeepney import DBusAddress, new_method_call  # type: ignore[import-untyped]

        bus = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")
        try:
            return self._answer(new_method_call(bus, method, signature, arguments), _BUS_PATIENCE)
        except TimeoutError as err:
            raise _trouble("the system bus does not answer") from err

    def ask(
        self, method: str, signature: str, arguments: tuple[Any, ...], patience: float | None
    ) -> Any:
        """Call a method of polkit.

        :param patience: None sends the question and waits for nothing.
        :raise TimeoutError: there was no answer within *patience*.
        """
        from jeepney import DBusAddress, new_method_call

        polkit = DBusAddress(_PATH, _NAME, _INTERFACE)
        message = new_method_call(polkit, method, signature, arguments)
        return self._answer(message, patience)

    def _answer(self, message: Any, patience: float | None) -> Any:
        from jeepney import DBusErrorResponse
        from jeepney.wrappers import unwrap_msg  # type: ignore[import-untyped]

        try:
            if patience is None:
                self._connection.send(message)
                return ()
            reply = self._connection.send_and_get_reply(message, timeout=patience)
            return unwrap_msg(reply)
        except TimeoutError:
            raise
        except DBusErrorResponse as err:
            raise _trouble(f"{err.name}: {' '.join(map(str, err.data))}") from err
        except Exception as err:
            raise _trouble(f"the system bus is gone: {err or type(err).__name__}") from err


def _trouble(detail: str) -> InternalError:
    return InternalError(detail, domain=Domain.DBUS)
