"""What URIs of connections mean."""

from __future__ import annotations

import string
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.client import sockets
from storaged.client.link import RemoteFailure
from storaged.client.ssh import remote_script, ssh_argv
from storaged.client.uri import URI, quote, unquote


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("storage:///system", "storage:///system"),
        ("storage:///session", "storage:///session"),
        ("storage:/system", "storage:///system"),
        ("storage+unix:///system?socket=/x/y", "storage:///system"),
        ("storage:///system?socket=/x&mode=direct", "storage:///system"),
        ("storage:///system?foo=bar&socket=/x", "storage:///system?foo=bar"),
        ("storage:///system?%66oo=b%20ar;x", "storage:///system?foo=b%20ar&x="),
        ("storage+ssh://me@there:22/system?keyfile=/k&no_tty=1", "storage:///system"),
        ("storage:///system?name=secret:///system", "secret:///system"),
        ("qemu+ssh://there/session", "qemu:///session"),
        ("storage:///system#there", "storage:///system#there"),
        ("storage:///%73ystem", "storage:///system"),
        ("storage:///a%20b%3Fc=d", "storage:///a%20b%3Fc=d"),
    ],
)
def test_name_for_the_daemon(text: str, name: str) -> None:
    uri = URI(text)
    assert uri.name == name
    assert uri.text == text


def test_parts() -> None:
    uri = URI("storage+ssh://m%40e@[fe80::1]:2222/system?socket=%2Fa%20b&socket=/c&mode=direct")
    assert (uri.driver, uri.transport) == ("storage", "ssh")
    assert (uri.user, uri.host, uri.port, uri.path) == ("m@e", "fe80::1", 2222, "/system")
    assert (uri.get("socket"), uri.get("mode"), uri.get("netcat")) == ("/c", "direct", None)
    plain = URI("storage:///system")
    assert (plain.transport, plain.user, plain.host, plain.port) == ("", None, None, None)
    assert URI("storage://host/system").host == "host"


@pytest.mark.parametrize(
    "text", ["storage", "", "://x", "1storage:///system", "sto rage:///", "/x"]
)
def test_no_driver(text: str) -> None:
    with pytest.raises(RemoteFailure) as caught:
        URI(text)
    assert caught.value.error.code == 5
    assert caught.value.error.message == (
        f"no connection driver available for URI '{text}' does not include a driver name"
    )


@pytest.mark.parametrize("port", ["x", "-1", "65536", "\u0661"])
def test_wrong_port(port: str) -> None:
    with pytest.raises(RemoteFailure, match="Unable to parse URI"):
        URI(f"storage+ssh://host:{port}/system")


def test_unknown_transport() -> None:
    with pytest.raises(RemoteFailure, match="transport in URL not recognised") as caught:
        URI("storage+foo:///system")
    assert (caught.value.error.code, caught.value.error.domain) == (8, 13)


def test_flags() -> None:
    uri = URI("storage:///system?no_verify=1&no_tty=0&no_sanity=yes")
    assert uri.get_flag("no_verify")
    assert not uri.get_flag("no_tty")
    assert not uri.get_flag("missing")
    with pytest.raises(RemoteFailure, match="URI component no_sanity"):
        uri.get_flag("no_sanity")


def test_nul_ends_a_value() -> None:
    assert URI("storage:///system?socket=%00hidden").get("socket") == ""


@pytest.mark.parametrize(
    ("quoted", "text"),
    [("a%2Fb", "a/b"), ("100%", "100%"), ("%zz%4", "%zz%4"), ("%C3%A4", "ä"), ("+", "+")],
)
def test_unquote(quoted: str, text: str) -> None:
    assert unquote(quoted) == text


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_quoting_is_undone(text: str) -> None:
    quoted = quote(text)
    assert unquote(quoted) == text
    assert set(quoted) <= {*string.ascii_letters, *string.digits, *"-_.!~*'()%"}


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.sampled_from(["", "storage:", "storage://", "storage+ssh://"]))
def test_anything_is_an_uri_or_refused(text: str, before: str) -> None:
    with suppress(RemoteFailure):
        assert quote(URI(before + text).name).isascii()


@pytest.mark.parametrize(
    ("text", "readonly", "root", "found"),
    [
        ("storage:///system", False, True, ("S/virtstoraged-sock", "S/libvirt-sock")),
        ("storage:///system", True, True, ("S/virtstoraged-sock-ro", "S/libvirt-sock-ro")),
        ("storage:///system", True, False, ("S/virtstoraged-sock-ro", "S/libvirt-sock-ro")),
        ("storage:///session", True, False, ("U/virtstoraged-sock", "U/libvirt-sock")),
        ("storage:///session", False, True, ("S/virtstoraged-sock", "S/libvirt-sock")),
        ("storage:///system?mode=direct", False, True, ("S/virtstoraged-sock",)),
        ("storage:///system?mode=legacy", False, True, ("S/libvirt-sock",)),
        ("qemu:///system", False, True, ("S/virtqemud-sock", "S/libvirt-sock")),
        ("qemu:///session", False, False, ("U/virtqemud-sock", "U/libvirt-sock")),
        ("xen:///system?mode=direct", False, True, ("S/virtxend-sock",)),
        ("other:///system", False, True, ("S/libvirt-sock",)),
        ("storage:///system?socket=/a/b&mode=legacy", True, True, ("/a/b",)),
    ],
)
def test_sockets(
    monkeypatch: pytest.MonkeyPatch, text: str, readonly: bool, root: bool, found: tuple[str, ...]
) -> None:
    monkeypatch.setattr(sockets, "is_root", lambda: root)
    environ = {"XDG_RUNTIME_DIR": "/run/user/7"}
    expected = tuple(
        path.replace("S/", "/run/libvirt/").replace("U/", "/run/user/7/libvirt/") for path in found
    )
    assert sockets.candidates(URI(text), environ, readonly=readonly) == expected


def test_sockets_of_a_user_without_a_runtime_directory() -> None:
    assert sockets.session_directory({"HOME": "/home/u"}) == "/home/u/.cache/libvirt"


def test_wrong_mode() -> None:
    with pytest.raises(RemoteFailure, match="Unknown remote mode 'bad'"):
        sockets.candidates(URI("storage:///system?mode=bad"), {})


def argv(text: str) -> list[str]:
    return ssh_argv(URI(text), "true")


def test_ssh_command() -> None:
    assert argv("storage+ssh://there/system") == [
        *("ssh", "-T", "-e", "none", "--", "there"),
        "sh -c true",
    ]
    assert argv(
        "storage+ssh://me@there:2222/system?keyfile=/k%20ey&no_verify=1&no_tty=1"
        "&command=/usr/bin/my-ssh&known_hosts=/h&sshauth=agent,privkey"
    )[:-2] == [
        *("/usr/bin/my-ssh", "-T", "-e", "none", "-p", "2222", "-l", "me", "-i", "/k ey"),
        *("-o", "UserKnownHostsFile=/h", "-o", "BatchMode=yes"),
        *("-o", "StrictHostKeyChecking=no", "--"),
    ]
    assert argv("storage+ssh:///system")[-2] == "localhost"
    assert argv("storage+ssh://-oProxyCommand=x/system")[-3:-1] == ["--", "-oProxyCommand=x"]


def test_ssh_authentication_that_is_none() -> None:
    with pytest.raises(RemoteFailure, match="unknown authentication method 'magic'"):
        argv("storage+ssh://there/system?sshauth=agent,magic")


def test_remote_script() -> None:
    native = remote_script(URI("storage+ssh://there/system?proxy=native&a=b%20c"), readonly=True)
    assert native == "exec virt-ssh-helper -r 'storage:///system?a=b%20c'"
    auto = remote_script(URI("storage+ssh://there/system"))
    assert "virt-ssh-helper storage:///system" in auto
    assert "/run/libvirt/virtstoraged-sock /run/libvirt/libvirt-sock;" in auto
    netcat = remote_script(URI("storage+ssh://there/system?proxy=netcat&netcat=/opt/nc"))
    assert "virt-ssh-helper" not in netcat
    assert 'exec /opt/nc -U "$s"' in netcat
    session = remote_script(URI("storage+ssh://there/session?netcat=nc"), readonly=True)
    assert '"${XDG_RUNTIME_DIR:-$HOME/.cache}/libvirt/virtstoraged-sock"' in session
    given = remote_script(URI("storage+ssh://there/system?socket=/a'%3Brm%20x"))
    assert "virt-ssh-helper" not in given
    assert """'/a'"'"';rm x'""" in given
    with pytest.raises(RemoteFailure, match="netcat"):
        remote_script(URI("storage+ssh://there/system?socket=/a&proxy=native"))
