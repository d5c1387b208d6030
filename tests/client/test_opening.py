"""Which connection an URI, an alias, or nothing at all opens."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from storaged.client import config, opening, sockets
from storaged.client.config import config_path, read_config
from storaged.client.link import RemoteFailure
from storaged.client.opening import open_link, resolve
from storaged.client.sockets import NoSocket
from storaged.client.transport import connect_unix
from storaged.rpc.remoteerror import RemoteError

SETTINGS = """
# of this user
uri_aliases = [
  "hail=storage+ssh://root@hail.example/system",  # the one
  'sleet=storage+ssh://root@sleet.example/system',
]
uri_default = "hail"
other = 5
"""


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of an ordinary user without anything."""
    for module in (config, opening, sockets):
        monkeypatch.setattr(module, "is_root", lambda: False)
    return {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "run")}


def write_settings(environ: dict[str, str], text: str) -> None:
    path = Path(config_path(environ))
    path.parent.mkdir(parents=True)
    path.write_text(text)


def refused(uri: str | None, environ: dict[str, str] | None = None) -> RemoteError:
    with pytest.raises(RemoteFailure) as caught:
        open_link(uri, environ=environ or {})
    return caught.value.error


def test_where_settings_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "is_root", lambda: False)
    assert config_path({"HOME": "/h"}) == "/h/.config/libvirt/libvirt.conf"
    assert config_path({"XDG_CONFIG_HOME": "/c"}) == "/c/libvirt/libvirt.conf"
    monkeypatch.setattr(config, "is_root", lambda: True)
    assert config_path({"HOME": "/h"}) == "/etc/libvirt/libvirt.conf"


def test_aliases(environ: dict[str, str]) -> None:
    write_settings(environ, SETTINGS)
    assert resolve("sleet", environ) == "storage+ssh://root@sleet.example/system"
    assert resolve("sleet", environ, aliases=False) == "sleet"
    assert resolve("unknown", environ) == "unknown"
    assert resolve("storage:///system", environ) == "storage:///system"
    assert refused("unknown", environ).code == 5


def test_default(environ: dict[str, str]) -> None:
    assert resolve(None, environ) == "storage:///session"
    write_settings(environ, SETTINGS)
    for name in (None, ""):
        assert resolve(name, environ) == "storage+ssh://root@hail.example/system"
        assert resolve(name, environ, aliases=False) == "hail"
    environ["LIBVIRT_DEFAULT_URI"] = "storage:///x"
    assert resolve(None, environ) == "storage:///x"


@pytest.mark.parametrize("name", ["virtqemud-sock", "libvirt-sock"])
def test_who_serves_machines_comes_first(environ: dict[str, str], name: str) -> None:
    path = Path(environ["XDG_RUNTIME_DIR"], "libvirt", name)
    path.parent.mkdir(parents=True)
    path.touch()
    assert resolve(None, environ) == "qemu:///session"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("uri_aliases = ['nothing']", "expected 'alias=uri://host/path'"),
        ("uri_aliases = ['a b=c']", "aliases may only contain"),
        ("uri_aliases = 'a=b'", ":1: expected a list"),
        ("\nuri_default = ['a']", ":2: expected a string"),
        ("uri_default 'a'", ":1: expecting an assignment"),
        ("uri_default =", ":1: expecting an assignment"),
        ("uri_default = 'a", ":1: unterminated string"),
        ("uri_aliases = ['a=b',\n", ":1: list is not closed"),
    ],
)
def test_malformed_settings(environ: dict[str, str], text: str, message: str) -> None:
    write_settings(environ, text)
    error = refused("alias", environ)
    assert error.code == 33
    assert str(error.message).startswith("configuration file syntax error: ")
    assert message in str(error.message)


def test_settings_that_cannot_be_read(tmp_path: Path) -> None:
    assert read_config(str(tmp_path)).default is None


@pytest.mark.parametrize(
    ("uri", "code", "message"),
    [
        ("test:///default", 5, "no connection driver available for test:///default"),
        ("storage+unix://host/system", 8, "using unix socket and remote server 'host'"),
        ("storage:///system?proxy=bad", 8, "Unnkown proxy type 'bad'"),
        ("storage:///system?mode=bad", 8, "Unknown remote mode 'bad'"),
        ("storage://host/system", 3, "transport 'tls' of URI 'storage://host/system'"),
        ("storage+tcp://host/system", 3, "transport 'tcp'"),
        ("storage:///embed", 8, "absolute path as its parameter 'root'"),
        ("storage:///embed?root=relative", 8, "absolute path as its parameter 'root'"),
        ("storage+ssh://host/system?command=/nope/ssh", 1, "cannot run /nope/ssh"),
    ],
)
def test_refused(uri: str, code: int, message: str) -> None:
    error = refused(uri)
    assert error.code == code
    assert message in str(error.message)


def test_nobody_listens(environ: dict[str, str], tmp_path: Path) -> None:
    error = refused(f"storage:///system?socket={tmp_path}/none")
    assert (error.code, error.domain, error.int1) == (38, 7, 2)
    assert error.message == (
        f"Failed to connect socket to '{tmp_path}/none': No such file or directory"
    )
    with pytest.raises(NoSocket) as caught:
        open_link("storage:///session", environ=environ)
    base = tmp_path / "run/libvirt"
    assert caught.value.tried == (f"{base}/virtstoraged-sock", f"{base}/libvirt-sock")
    assert str(caught.value).startswith(f"Failed to connect socket to '{base}/virtstoraged-sock'")


def test_what_exists_is_taken(environ: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "run/libvirt/libvirt-sock"
    path.parent.mkdir(parents=True)
    path.touch()
    error = refused("storage:///session", environ)
    assert error.message == f"Failed to connect socket to '{path}': Connection refused"


def test_socket_with_a_long_path(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 120)
    directory.mkdir()
    (tmp_path / "s").symlink_to(directory)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"{tmp_path}/s/sock")
        listener.listen()
        connect_unix(directory / "sock").close()
    with pytest.raises(RemoteFailure, match="Connection refused"):
        connect_unix(directory / "sock")
    with pytest.raises(RemoteFailure, match="No such file"):
        connect_unix(directory / "none/sock")


def test_platform_without_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.geteuid")
    assert refused("storage:///system").code == 3
