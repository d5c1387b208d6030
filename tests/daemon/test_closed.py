"""Who is let in: what stops the start, and a user's own daemon."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from storaged.daemon.admission import decide, require_closed
from storaged.daemon.config import Auth, Settings, read
from storaged.daemon.configfile import ConfigError
from storaged.server.sockets import Bound
from tests.daemon.polkitd import double_of_polkit, message_bus
from tests.daemon.running import (
    Daemon,
    await_ready,
    configure,
    environment,
    launch,
    log_of,
    storaged_daemon,
)

NOBODY = 65534
NO_BUS = {"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent/bus"}


def there() -> None:
    return None


def missing() -> str:
    return "it is not there"


def test_where_nothing_is_set() -> None:
    asked = decide(Settings(), privileged=True, unavailable=there)
    assert (asked.rw, asked.ro, asked.rw_mode, asked.ro_mode) == (
        *(Auth.POLKIT, Auth.POLKIT, 0o777, 0o777),
    )
    alone = decide(Settings(), privileged=True, unavailable=missing)
    assert (alone.rw, alone.ro, alone.rw_mode, alone.ro_mode) == (
        *(Auth.NONE, Auth.NONE, 0o700, 0o777),
    )
    session = decide(Settings(), privileged=False, unavailable=there)
    assert (session.rw, session.rw_mode, session.admin_mode) == (Auth.NONE, 0o700, 0o700)


def test_polkit_that_is_asked_for_must_be_there() -> None:
    for key in ("auth_unix_rw", "auth_unix_ro"):
        settings = read(f'\n{key} = "polkit"', "/etc/x").settings
        assert decide(settings, privileged=False, unavailable=there)
        with pytest.raises(ConfigError) as caught:
            decide(settings, privileged=True, unavailable=missing)
        assert f"/etc/x: line 2: '{key}' asks for polkit: it is not there" in caught.value.message
        assert "jeepney" in (caught.value.advice or "")


def test_groups() -> None:
    settings = read('unix_sock_group = "root"', "f").settings
    assert decide(settings, privileged=False, unavailable=there).group == 0
    settings = read('unix_sock_group = "64123"', "f").settings
    assert decide(settings, privileged=False, unavailable=there).group == 64123
    for name in ("no such group", "\u00b2", "4294967295", "9" * 5000):
        settings = read(f'unix_sock_group = "{name}"', "f").settings
        with pytest.raises(ConfigError, match=f"f: line 1: there is no group '{name}'"):
            decide(settings, privileged=False, unavailable=there)


@pytest.mark.parametrize(
    ("mode", "group", "allowed"),
    [
        (0o700, None, True),
        (0o600, None, True),
        (0o750, None, True),
        (0o755, None, True),
        (0o770, "mine", True),
        (0o770, None, False),
        (0o770, "other", False),
        (0o702, None, False),
        (0o777, "mine", False),
        (0o772, "mine", False),
    ],
)
def test_sockets_without_authentication(
    tmp_path: Path, mode: int, group: str | None, allowed: bool
) -> None:
    number = os.getegid() + (group == "other")
    text = "" if group is None else f'unix_sock_group = "{number}"\n'
    settings = read(text, "f").settings
    admitted = decide(settings, privileged=False, unavailable=missing)
    with socket.socket(socket.AF_UNIX) as made:
        path = tmp_path / "s"
        made.bind(str(path))
        path.chmod(mode)
        bound = Bound(made, path, None)
        if allowed:
            require_closed(bound, admitted)
        else:
            with pytest.raises(ConfigError, match=f"mode {mode:04o}"):
                require_closed(bound, admitted)
        asked = decide(
            read('auth_unix_rw = "polkit"', "f").settings, privileged=True, unavailable=there
        )
        require_closed(bound, asked)


@pytest.mark.parametrize(
    ("entry", "mask", "allowed"),
    [
        ((0x02, 6, NOBODY), 7, False),
        ((0x02, 6, NOBODY), 5, True),  # the mask takes it away
        ((0x02, 4, NOBODY), 7, True),
        ((0x02, 6, os.geteuid()), 7, True),
        ((0x08, 6, NOBODY), 7, False),
        ((0x08, 6, os.getegid()), 7, True),
    ],
)
def test_access_control_lists(
    tmp_path: Path, entry: tuple[int, int, int], mask: int, allowed: bool
) -> None:
    settings = read(f'unix_sock_group = "{os.getegid()}"', "f").settings
    admitted = decide(settings, privileged=False, unavailable=missing)
    nobody = 0xFFFFFFFF
    entries = (
        *((0x01, 7, nobody), *([entry] if entry[0] == 0x02 else []), (0x04, 7, nobody)),
        *(*([entry] if entry[0] == 0x08 else []), (0x10, mask, nobody), (0x20, 0, nobody)),
    )
    data = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *one) for one in entries)
    with socket.socket(socket.AF_UNIX) as made:
        path = tmp_path / "s"
        made.bind(str(path))
        try:
            os.setxattr(path, "system.posix_acl_access", data)
        except OSError as err:
            pytest.skip(f"no access control lists here: {err.strerror}")
        bound = Bound(made, path, None)
        if allowed:
            require_closed(bound, admitted)
        else:
            with pytest.raises(ConfigError, match=r"access control list .* lets (user|group)"):
                require_closed(bound, admitted)


def test_addresses_without_a_mode(tmp_path: Path) -> None:
    admitted = decide(Settings(), privileged=False, unavailable=missing)
    with socket.socket(socket.AF_UNIX) as made:
        with pytest.raises(ConfigError, match="everybody may connect"):
            require_closed(Bound(made, Path(), None), admitted)
        plain = tmp_path / "file"
        plain.touch(0o600)
        with pytest.raises(ConfigError, match="is not the socket"):
            require_closed(Bound(made, plain, None), admitted)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('auth_unix_rw = "polkit"', "'auth_unix_rw' asks for polkit: cannot connect"),
        ('auth_unix_ro = "polkit"', "'auth_unix_ro' asks for polkit: cannot connect"),
        ('auth_unix_rw = "sasl"', "'auth_unix_rw' asks for SASL"),
        ('access_drivers = [ "polkit" ]', "'access_drivers' cannot be honoured"),
        ("audit_level = 2", "'audit_level' cannot be honoured"),
        ('unix_sock_rw_perms = "0777"', "everybody may write to the socket"),
        ('unix_sock_rw_perms = "0770"', "which unix_sock_group does not name"),
        ('unix_sock_group = "no such group"', "there is no group"),
        ('log_outputs = "1:file:relative"', "must be absolute"),
        ('rbd_python = "/none"', "'rbd_python' must be the absolute path of a program"),
        ("max_clients = ", "line 1: expected a value"),
    ],
)
def test_the_start_is_refused_and_nothing_is_left(tmp_path: Path, config: str, said: str) -> None:
    configure(tmp_path, config + "\n")
    process = launch(tmp_path, environ=NO_BUS)
    assert process.wait(30) == 1
    assert said in log_of(tmp_path)
    if "polkit" in config and "auth" in config:
        assert "pip install 'storaged[polkit]'" in log_of(tmp_path)
    assert not (tmp_path / "run/virtstoraged.pid").exists()
    assert not (tmp_path / "run/libvirt").exists(), "something was touched already"


def test_a_group_of_its_own(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving a socket to another group needs root")
    config = f'unix_sock_group = "{NOBODY}"\nunix_sock_rw_perms = "0770"\n'
    with storaged_daemon(tmp_path, config=config, environ=NO_BUS) as daemon:
        found = daemon.socket.stat()
        assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (NOBODY, 0o770)
        assert daemon.readonly_socket.stat().st_gid == NOBODY


def test_polkit_by_default(tmp_path: Path) -> None:
    pytest.importorskip("jeepney")
    if os.geteuid() != 0 or shutil.which("virsh") is None or shutil.which("setpriv") is None:
        pytest.skip("root, virsh and setpriv are needed")
    with message_bus() as address, tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        environ = {"DBUS_SYSTEM_BUS_ADDRESS": address}
        command = ["virsh", "-q", "-c"]
        other = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        with (
            double_of_polkit(tmp_path, address, "no") as noted,
            storaged_daemon(root, environ=environ) as daemon,
        ):
            assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o777
            subprocess.run([*command, daemon.uri(), "uri"], check=True, capture_output=True)
            assert not noted.exists()  # root is not asked
            for readonly in (False, True):
                done = subprocess.run(
                    [*other, *command, daemon.uri(readonly), "uri"], capture_output=True, text=True
                )
                assert done.returncode == 1
                assert "authentication failed: access denied by policy" in done.stderr
            asked = noted.read_text()
            assert asked.index("org.libvirt.unix.manage") < asked.index("org.libvirt.unix.monitor")
        with (
            double_of_polkit(tmp_path, address, "yes"),
            storaged_daemon(root, environ=environ) as daemon,
        ):
            subprocess.run([*other, *command, daemon.uri(), "uri"], check=True, capture_output=True)


@pytest.fixture
def users_directory() -> Iterator[Path]:
    """A directory of an ordinary user, where that user may enter."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    with tempfile.TemporaryDirectory(prefix="storaged-test-") as name:
        os.chown(name, NOBODY, NOBODY)
        yield Path(name)


def test_a_users_own_daemon(users_directory: Path) -> None:
    run, config = users_directory / "run", users_directory / "config"
    run.mkdir(mode=0o700)
    os.chown(run, NOBODY, NOBODY)
    script = Path(__file__).with_name("asuser.py")
    command = [sys.executable, str(script), str(NOBODY)]
    environ = {
        "HOME": str(users_directory),
        "XDG_RUNTIME_DIR": str(run),
        "XDG_CONFIG_HOME": str(config),
    }
    with (users_directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--verbose"], stdout=log, stderr=log, env=environment(environ), cwd="/"
        )
    try:
        daemon = Daemon(users_directory, process, session=True)
        main = run / "libvirt/virtstoraged-sock"
        (users_directory / "storaged.log").symlink_to("log")
        await_ready(daemon)
        assert stat.S_IMODE(main.stat().st_mode) == 0o700
        assert main.stat().st_uid == NOBODY
        assert (run / "libvirt/virtstoraged-admin-sock").is_socket()
        assert not (run / "libvirt/virtstoraged-sock-ro").exists()
        assert int((run / "libvirt/virtstoraged.pid").read_text()) == process.pid
        assert stat.S_IMODE((run / "libvirt").stat().st_mode) == 0o700
        if shutil.which("virsh"):
            done = subprocess.run(
                ["virsh", "-q", "-c", daemon.uri(), "pool-define-as", "p", "dir", "--target", "/x"],
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            defined = config / "libvirt/storage/p.xml"
            assert (defined.stat().st_uid, stat.S_IMODE(defined.stat().st_mode)) == (NOBODY, 0o600)
        assert daemon.stop() == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
