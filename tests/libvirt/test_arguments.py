"""Arguments for which libvirt-python ends the process, or has no answer of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storaged import libvirt
from storaged.libvirt.identity import identity_params
from storaged.rpc.typedparam import ParamType


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"storage:///embed?root={tmp_path}/root"


@pytest.fixture
def quiet() -> Iterator[None]:
    """No error is printed."""
    libvirt.registerErrorHandler(lambda *_: None, None)
    yield
    libvirt.registerErrorHandler(None, None)


@pytest.mark.parametrize("auth", [None, [], (), ([2, 5], print, None), [(2,), print]])
def test_credentials_that_nobody_asks_for(uri: str, auth: Any) -> None:
    with libvirt.openAuth(uri, auth) as conn:
        assert conn.isAlive() == 1


@pytest.mark.parametrize(
    "auth", ["abc", b"abc", 5, {1: 2}, [[2]], [None, None, None], [["x"], print], [[1.5], print]]
)
def test_no_credentials_at_all(uri: str, auth: Any) -> None:
    with pytest.raises(TypeError, match="credentials"):
        libvirt.openAuth(uri, auth)


def test_read_only_with_credentials(uri: str, quiet: None) -> None:
    with libvirt.openAuth(uri, [[2], print, None], libvirt.VIR_CONNECT_RO) as conn:
        with pytest.raises(libvirt.libvirtError) as caught:
            conn.storagePoolDefineXML("<pool/>")
        assert caught.value.get_error_code() == libvirt.VIR_ERR_OPERATION_DENIED


def test_identity_of_a_closed_connection(uri: str, quiet: None) -> None:
    conn = libvirt.open(uri)
    conn.close()
    with pytest.raises(libvirt.libvirtError) as caught:
        conn.setIdentity({})
    assert caught.value.get_error_code() == libvirt.VIR_ERR_INVALID_CONN


@pytest.mark.parametrize("name", ["x" * 200, "", "nothing"])
def test_identity_of_unknown_kind(uri: str, quiet: None, name: str) -> None:
    with libvirt.open(uri) as conn, pytest.raises(libvirt.libvirtError) as caught:
        conn.setIdentity({name: "x"})
    assert caught.value.get_error_code() == libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED


def test_more_identity_than_fits(uri: str, quiet: None) -> None:
    with libvirt.open(uri) as conn, pytest.raises(libvirt.libvirtError):
        conn.setIdentity({f"x{number}": number for number in range(30)})


def test_types_of_an_identity() -> None:
    given = {
        "user-name": "u\0cut",
        "unix-user-id": True,
        "process-id": -1,
        "process-time": (1 << 64) - 1,
        "other": 1.5,
        "other-flag": False,
        "other-sign": -2,
        "other-number": 2,
    }
    found = {each.field: each.value for each in identity_params(given)}
    assert found == {
        "user-name": (ParamType.STRING, "u"),
        "unix-user-id": (ParamType.ULLONG, 1),
        "process-id": (ParamType.LLONG, -1),
        "process-time": (ParamType.ULLONG, (1 << 64) - 1),
        "other": (ParamType.DOUBLE, 1.5),
        "other-flag": (ParamType.BOOLEAN, False),
        "other-sign": (ParamType.LLONG, -2),
        "other-number": (ParamType.ULLONG, 2),
    }
