"""A transport through ssh: a program on the other host joins our connection to its daemon.

Source: libvirt's behaviour: its own helper where the other host has it, netcat where not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from storaged.client.link import RemoteFailure
from storaged.client.sockets import is_session, socket_names
from storaged.client.transport import Transport
from storaged.client.uri import URI
from storaged.command import ConnectedChild, environment, quote_command, start_connected
from storaged.errors import Domain, InvalidArgument, StorageError

#: What ssh needs of our environment to find its keys and to ask its questions.
_PASSED: Final = (
    *("SSH_AUTH_SOCK", "SSH_ASKPASS", "SSH_ASKPASS_REQUIRE", "KRB5CCNAME", "TERM"),
    *("DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "DBUS_SESSION_BUS_ADDRESS"),
)
_HELPER: Final = "virt-ssh-helper"
#: The ways of authentication that ssh itself decides on; other libraries take others.
_SSHAUTH: Final = frozenset(("agent", "privkey", "password", "keyboard-interactive"))


class SSHTransport(Transport):
    """A socket to a child that runs ssh."""

    encrypted = True

    def __init__(self, child: ConnectedChild) -> None:
        super().__init__(child.socket)
        self._child = child

    def explain(self, doing: str) -> str:
        """Return what was tried, with what ssh says about it."""
        self._child.wait(1.0)  # it closes its end before its last words
        said = self._child.said()
        return f"{doing}: {said}" if said else doing

    def close(self) -> None:
        """Hang up and reap the child."""
        self._child.close()


def connect_ssh(uri: URI, environ: Mapping[str, str], *, readonly: bool = False) -> SSHTransport:
    """Start ssh to the host of an URI. Whether it gets there is seen when something is read.

    :raise RemoteFailure: a parameter without meaning (code 8), or ssh cannot be run.
    """
    argv = ssh_argv(uri, remote_script(uri, readonly=readonly))
    try:
        return SSHTransport(start_connected(argv, environment(environ, *_PASSED)))
    except StorageError as err:
        raise RemoteFailure.of(err) from err


def ssh_argv(uri: URI, script: str) -> list[str]:
    """Return the command line that runs a script on the host of an URI.

    :raise RemoteFailure: a parameter without meaning (code 8).
    """
    for each in (uri.get("sshauth") or "").split(","):
        if each and each not in _SSHAUTH:
            _refuse(f"unknown authentication method '{each}'")
    argv = [uri.get("command") or "ssh", "-T", "-e", "none"]
    if uri.port is not None:
        argv += ["-p", str(uri.port)]
    if uri.user is not None:
        argv += ["-l", uri.user]
    keyfile = uri.get("keyfile")
    if keyfile:
        argv += ["-i", keyfile]
    known_hosts = uri.get("known_hosts")
    if known_hosts:
        argv += ["-o", f"UserKnownHostsFile={known_hosts}"]
    if uri.get_flag("no_tty"):
        argv += ["-o", "BatchMode=yes"]
    if uri.get_flag("no_verify"):
        argv += ["-o", "StrictHostKeyChecking=no"]
    # The login shell of the other side reads one line, whatever its language; sh reads the rest.
    return [*argv, "--", uri.host or "localhost", quote_command(["sh", "-c", script])]


def remote_script(uri: URI, *, readonly: bool = False) -> str:
    """Return what a POSIX shell on the other host runs to join us to its daemon.

    :raise RemoteFailure: the parameters *proxy* and *socket* contradict each other (code 8).
    """
    proxy = uri.get("proxy") or "auto"
    if uri.get("socket") is not None:
        if proxy == "native":
            _refuse("the parameter 'socket' needs netcat as proxy")
        proxy = "netcat"
    elif uri.get("netcat") is not None and proxy == "auto":
        proxy = "netcat"
    helper = quote_command([_HELPER, *(["-r"] if readonly else []), uri.name])
    if proxy == "native":
        return f"exec {helper}"
    netcat = _netcat_script(uri, readonly=readonly)
    if proxy == "netcat":
        return netcat
    return f"if command -v {_HELPER} >/dev/null 2>&1; then exec {helper}; fi; {netcat}"


def _netcat_script(uri: URI, *, readonly: bool) -> str:
    """Return what joins us to the first socket that is there, through netcat.

    Where netcat knows the option, it ends with its input, as the connection does.
    """
    program = quote_command([uri.get("netcat") or "nc"])
    return (
        f'for s in {_remote_sockets(uri, readonly=readonly)}; do test -S "$s" && break; done; '
        f"if {program} -h 2>&1 | grep -q -e '-q '; then exec {program} -q 0 -U \"$s\"; fi; "
        f'exec {program} -U "$s"'
    )


def _remote_sockets(uri: URI, *, readonly: bool) -> str:
    """Return the sockets of the other host as words of its shell: it knows which user we are."""
    given = uri.get("socket")
    if given is not None:
        return quote_command([given])
    if not is_session(uri):
        names = socket_names(uri, readonly=readonly)
        return quote_command([f"/run/libvirt/{name}" for name in names])
    directory = "${XDG_RUNTIME_DIR:-$HOME/.cache}/libvirt"
    return " ".join(f'"{directory}/{name}"' for name in socket_names(uri))


def _refuse(text: str) -> None:
    raise RemoteFailure.of(InvalidArgument(text, domain=Domain.REMOTE))
