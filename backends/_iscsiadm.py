"""What iscsiadm does for us: each call with its bound, each failure with its meaning.

Source: the manual page of iscsiadm 2.1 and the meaning of its exit statuses there.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Final

from storaged import tool
from storaged.backends._iscsiportal import Portal, parse_discovery
from storaged.backends._iscsireach import reach
from storaged.backends._iscsisession import DEFAULT
from storaged.errors import AccessDenied, InternalError, OperationFailed, StorageError, Timeout
from storaged.job import Job

#: How long iscsiadm may take for what it does alone, in seconds.
LOCAL: Final = 35.0  # it waits 30 s for others of its kind
#: iscsiadm reads the records of all targets to find one, and fails if another one is removed
#: meanwhile, as after each login of ours: so often it is asked again.
_TRIES: Final = 5
#: How long iscsiadm may take where a target has to answer, in seconds.
_REMOTE: Final = 60.0


class Status(IntEnum):
    """The exit statuses of iscsiadm that mean something to us."""

    OK = 0
    SESSION_NOT_FOUND = 2
    TRANSPORT = 4
    LOGIN = 5
    DATABASE = 6
    TRANSPORT_TIMEOUT = 8
    LOGOUT = 10
    REQUEST_TIMEOUT = 11
    NO_TRANSPORT = 12
    ACCESS = 13
    SESSION_EXISTS = 15
    DAEMON_TALK = 18
    LOGIN_REFUSED = 19
    NO_DAEMON = 20
    NOTHING_FOUND = 21
    NOT_IN_SYSFS = 22
    HOST_NOT_FOUND = 23
    AUTHENTICATION = 24
    BUSY = 28


_START_DAEMON: Final = "Start it: systemctl start iscsid. Its log says more: journalctl -u iscsid"
_ADVICE: Final[Mapping[int, str]] = MappingProxyType(
    {
        Status.LOGIN: "Look into the target's log; it may not admit this initiator.",
        Status.DATABASE: "See who else uses iscsiadm: ls -l /run/lock/iscsi",
        Status.NO_TRANSPORT: "Load the kernel's module: modprobe iscsi_tcp",
        Status.ACCESS: "Only root may do this.",
        Status.DAEMON_TALK: _START_DAEMON,
        Status.LOGIN_REFUSED: "The target has no such name, or does not admit this initiator: "
        "look into its log.",
        Status.NO_DAEMON: _START_DAEMON,
        Status.NOTHING_FOUND: "See what there is: storagectl pool find-sources-as iscsi HOST",
        Status.BUSY: "A device of it is in use.",
    }
)
_NO_ANSWER: Final = frozenset(
    {Status.TRANSPORT, Status.TRANSPORT_TIMEOUT, Status.REQUEST_TIMEOUT, Status.HOST_NOT_FOUND}
)


def discover(
    portal: Portal,
    interface: str | None = None,
    job: Job[Any] | None = None,
    *,
    timeout: float = _REMOTE,
) -> tuple[tuple[Portal, str], ...]:
    """Return the targets that a portal offers; nothing of it is recorded.

    :param interface: None is each that iscsiadm would use.
    :param timeout: how long the portal may take to answer, in seconds.
    :raise StorageError: it does not answer, or refuses.
    """
    reach(portal, job)
    words = ["--type", "sendtargets", "--portal", str(portal), "--op", "nonpersistent"]
    if interface is not None:
        words += ["--interface", interface]
    output = _run("discovery", words, timeout, job, accept=(Status.OK, Status.NOTHING_FOUND))
    return parse_discovery(output.text)


def new_node(target: str, portal: Portal, interface: str, job: Job[Any] | None = None) -> None:
    """Have iscsiadm make a record with the values of its configuration."""
    _run("node", [*_of(target, portal, interface), "--op", "new"], LOCAL, job, changes=True)


def login(target: str, portal: Portal, interface: str, job: Job[Any] | None = None) -> None:
    """Log in as a record says. Somebody who was faster is no error.

    :raise AccessDenied: the target wants other credentials.
    :raise StorageError: it does not answer, or refuses; or iscsid does.
    """
    words = [*_of(target, portal, interface), "--login"]
    done = (Status.OK, Status.SESSION_EXISTS)
    for _ in range(_TRIES):
        output = _run("node", words, _REMOTE, job, (*done, Status.DATABASE), changes=True)
        if output.status in done:
            return
    raise meaning(output)


def logout(session: int, job: Job[Any] | None = None) -> None:
    """End a session; one that has ended is no error."""
    gone = (Status.OK, Status.SESSION_NOT_FOUND, Status.NOTHING_FOUND, Status.NOT_IN_SYSFS)
    _run("session", ["-r", str(session), "--logout"], _REMOTE, job, gone, changes=True)


def rescan(session: int, job: Job[Any] | None = None) -> None:
    """Have the kernel look for units that are new or have another size."""
    _run("session", ["-r", str(session), "-R"], _REMOTE, job)


def new_interface(name: str, initiator: str, job: Job[Any] | None = None) -> None:
    """Make an interface for an initiator; one that could not be finished is removed again."""
    words = ["--interface", name]
    _run("iface", [*words, "--op", "new"], LOCAL, job, changes=True)
    value = ["--name", "iface.initiatorname", "--value", initiator]
    try:
        _run("iface", [*words, "--op", "update", *value], LOCAL, job, changes=True)
    except StorageError as err:
        try:
            delete_interface(name)
        except StorageError as left:
            err.add_note(f"interface '{name}' is left: {left.message}")
        raise


def delete_interface(name: str, job: Job[Any] | None = None) -> None:
    """Remove an interface and the records for it; one that is gone is no error."""
    words = ["--interface", name, "--op", "delete"]
    _run("iface", words, LOCAL, job, (Status.OK, Status.NOTHING_FOUND), changes=True)


def _of(target: str, portal: Portal, interface: str | None) -> list[str]:
    return ["--portal", str(portal), "--targetname", target, "--interface", interface or DEFAULT]


def _run(
    mode: str,
    words: list[str],
    timeout: float,
    job: Job[Any] | None,
    accept: Collection[int] = (Status.OK,),
    *,
    changes: bool = False,
) -> tool.Output:
    argv = ["iscsiadm", "--mode", mode, *words]
    output = tool.run(argv, timeout=timeout, job=job, accept=(), changes=changes)
    if output.status not in accept:
        raise meaning(output)
    return output


def meaning(output: tool.Output) -> StorageError:
    """Return the error that a failed call of iscsiadm stands for."""
    said = [line for line in output.stderr.splitlines() if line.startswith("iscsiadm:")]
    told = [line for line in said if "reported error" in line] or said  # the reason, of several
    line = told[-1] if told else ""
    detail = line.removeprefix("iscsiadm: ") or f"exit status {output.status}"
    status = output.status
    text = f"iscsiadm {_what(output.argv)}: {detail}"
    if status == Status.AUTHENTICATION or "authorization failure" in output.stderr:
        return AccessDenied(
            text,
            advice="Compare the user and the secret of the pool with those "
            "of the target, and see whether it admits this initiator.",
        )
    if status in _NO_ANSWER:
        return Timeout(text, advice="The portal does not answer: see whether its server is up.")
    advice = _ADVICE.get(status)
    if status in (Status.LOGIN_REFUSED, Status.LOGIN, Status.NOTHING_FOUND):
        return OperationFailed(text, advice=advice)
    if advice is not None:
        return InternalError(text, advice=advice)
    return output.failure(f"To see it again: {shlex.join(output.argv)}")


def _what(argv: tuple[str, ...]) -> str:
    """Return the words of a call that say what was tried, and with whom."""
    kept = [word for word in argv[1:] if word not in ("--mode", "--interface", DEFAULT)]
    return " ".join(kept)
