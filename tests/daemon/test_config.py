"""The configuration file: its syntax, its types, and what in it stops the start."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.daemon.config import Auth, Settings, load, read
from storaged.daemon.configfile import ConfigError, parse
from storaged.errors import SystemFailure

PROJECT = Path(__file__).parents[2]


def test_syntax() -> None:
    text = (
        "# a comment\n\n"
        "number = 5 # and one behind\n"
        "negative=-1; same_line = 2\n"
        'double = "a # b"\r\nsingle = \'c "d"\'\n'
        'long = """two\nlines"""\n'
        'list = [ "a", # one\n  2,\n ]\nempty = []\nlast = "x"'
    )
    found = {key: (one.value, one.line) for key, one in parse(text, "f").items()}
    assert found == {
        "number": (5, 3),
        "negative": (-1, 4),
        "same_line": (2, 4),
        "double": ("a # b", 5),
        "single": ('c "d"', 6),
        "long": ("two\nlines", 7),
        "list": (("a", 2), 9),
        "empty": ((), 12),
        "last": ("x", 13),
    }


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a", "line 1: expected '=' after 'a', found the end of the file"),
        ("\na =\n", "line 2: expected a value of 'a'"),
        ('a = "x\n', "line 1: the string that begins here has no end"),
        ("a = [1 2]", "line 1: expected ',' or ']', found '2]'"),
        ("\n\na = [1,\n", "line 3: the list that begins here has no ']'"),
        ("a = 1 2", "line 1: expected the end of the line, found ' 2'"),
        ("a = 1\nb = 1\na = 2", "line 3: 'a' is set already, in line 1"),
        ("= 1", "line 1: expected the name of a setting"),
        ("a = yes", "line 1: expected a value of 'a'"),
        ("a = [[1]]", "line 1: expected a value of the list"),
        (f"a = {'9' * 5000}", "line 1: the number 99999999999999999999 is too large"),
    ],
)
def test_syntax_errors_name_file_and_line(text: str, where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "/etc/x.conf")
    assert f"/etc/x.conf: {where}" in caught.value.message


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab=[]\"'#,;1- \n\t", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse(text, "f")
    except ConfigError as caught:
        refusal = caught.detail
    else:
        refusal = "f: line "
        assert all(1 <= one.line <= text.count("\n") + 1 for one in found.values())
    assert refusal.startswith("f: line ")


def test_defaults_are_libvirts() -> None:
    found = Settings()
    assert (found.max_clients, found.max_queued_clients, found.max_anonymous_clients) == (
        *(5000, 1000, 20),
    )
    assert (found.min_workers, found.max_workers, found.prio_workers) == (5, 20, 5)
    assert (found.max_client_requests, found.keepalive_interval, found.keepalive_count) == (5, 5, 5)
    assert (found.unix_sock_ro_perms, found.unix_sock_rw_perms) == (0o777, None)
    assert found.auth_unix_rw is None


def test_values_are_typed() -> None:
    found = read(
        'unix_sock_rw_perms = "0770"\nauth_unix_rw = "polkit"\nauth_unix_ro = "none"\n'
        'max_clients = 7\nunix_sock_group = "disk"\nkeepalive_interval = -1\nlog_filters = "1:rpc"',
        "f",
    ).settings
    assert (found.unix_sock_rw_perms, found.auth_unix_rw) == (0o770, Auth.POLKIT)
    assert (found.auth_unix_ro, found.max_clients, found.unix_sock_group) == (Auth.NONE, 7, "disk")
    assert (found.keepalive_interval, found.log_filters) == (-1, "1:rpc")
    assert found.where("max_clients") == "f: line 4: "
    assert (found.protect_backing, read("protect_backing = 1", "f").settings.protect_backing) == (
        *(0, 1),
    )
    with pytest.raises(ConfigError, match="'protect_backing' must be 0 or 1"):
        read("protect_backing = 2", "f")


def test_an_interpreter_that_is_none_stops_the_start(tmp_path: Path) -> None:
    assert read(f'rbd_python = "{sys.executable}"', "f").settings.rbd_python == sys.executable
    assert read('rbd_python = ""', "f").settings.rbd_python is None
    plain = tmp_path / "plain"
    plain.write_text("")
    for path in (plain, tmp_path, tmp_path / "none", "python3"):
        with pytest.raises(ConfigError) as caught:
            read(f'\nrbd_python = "{path}"', "f")
        assert caught.value.detail == (
            f"f: line 2: 'rbd_python' must be the absolute path of a program, which '{path}' is not"
        )


def test_unknown_settings_are_reported_with_their_line() -> None:
    loaded = read("max_clients = 7\n\nmax_clientz = 8\nfuture = [ 1 ]\n", "f")
    assert loaded.settings.max_clients == 7
    assert loaded.warnings == (
        "f: line 3: unknown setting 'max_clientz'",
        "f: line 4: unknown setting 'future'",
    )


def test_settings_of_libvirt_that_change_nothing_are_known() -> None:
    text = (
        'host_uuid = "x"\nhost_uuid_source = "smbios"\novs_timeout = 5\naudit_level = 1\n'
        "audit_logging = 0\naccess_drivers = [ ]\nlisten_tls = 0\n"
    )
    assert read(text, "f").warnings == ()


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('access_drivers = [ "polkit" ]', "access_drivers"),
        ('access_drivers = "polkit"', "access_drivers"),
        ('auth_unix_rw = "sasl"', "auth_unix_rw"),
        ('auth_unix_ro = "sasl"', "auth_unix_ro"),
        ("sasl_allowed_username_list = [ ]", "sasl_allowed_username_list"),
        ("audit_level = 2", "audit_level"),
        ("audit_logging = 1", "audit_logging"),
        ("listen_tcp = 1", "listen_tcp"),
        ('auth_tls = "none"', "auth_tls"),
        ('tls_port = "16514"', "tls_port"),
        ('tls_allowed_dn_list = [ "x" ]', "tls_allowed_dn_list"),
    ],
)
def test_what_cannot_be_honoured_stops_the_start(text: str, key: str) -> None:
    with pytest.raises(ConfigError, match=f"f: line 2: '{key}' "):
        read("# why\n" + text, "f")


@pytest.mark.parametrize(
    "text",
    [
        'max_clients = "5"',
        "max_clients = 0",
        "max_clients = 99999999999",
        "max_workers = 0",
        "min_workers = -1",
        "log_level = 0",
        "log_level = 5",
        "unix_sock_rw_perms = 770",
        'unix_sock_rw_perms = "0999"',
        'unix_sock_rw_perms = "07777"',
        'unix_sock_rw_perms = ""',
        'unix_sock_dir = "relative"',
        'auth_unix_rw = "polkitt"',
        "auth_unix_rw = 1",
        "log_filters = [ ]",
        "host_uuid = 1",
        "rbd_python = 3",
        'ovs_timeout = "5"',
        "min_workers = 9\nmax_workers = 8",
    ],
)
def test_wrong_values_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="f: line 1: "):
        read(text, "f")


def test_a_default_gives_way() -> None:
    assert read("max_workers = 2", "f").settings.min_workers == 2
    assert read("min_workers = 30", "f").settings.max_workers == 30


def test_files(tmp_path: Path) -> None:
    missing = tmp_path / "missing.conf"
    assert load(missing, required=False).settings == Settings()
    with pytest.raises(SystemFailure, match=r"missing\.conf"):
        load(missing, required=True)
    odd = tmp_path / "odd.conf"
    odd.write_bytes(b'unix_sock_group = "\xff"\n')
    assert load(odd, required=True).settings.unix_sock_group == "\udcff"


def test_the_sample_names_every_setting_with_its_default() -> None:
    sample = PROJECT / "packaging/virtstoraged.conf"
    assert read(sample.read_text(), "").settings == Settings()
    lines = sample.read_text().splitlines()
    commented = "\n".join(line[1:] for line in lines if line.startswith("#") and " = " in line)
    loaded = read("\n".join(line for line in commented.splitlines() if line[0] != " "), "sample")
    assert loaded.warnings == ()
    names = set(Settings.__slots__) - {"file", "lines"}
    assert names <= set(loaded.settings.lines)
    unset = {"unix_sock_group", "unix_sock_dir", "auth_unix_rw", "auth_unix_ro"}
    unset |= {"unix_sock_rw_perms", "log_filters", "log_outputs", "rbd_python"}
    for name in names - unset:
        assert getattr(loaded.settings, name) == getattr(Settings(), name), name
