"""What names inside images refer to."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.cli import render
from storaged.references import Reference, ReferenceKind, clean, refer, without_credentials


@pytest.mark.parametrize(
    ("name", "kind", "inside"),
    [
        (b"base", ReferenceKind.FILE, True),
        (b"sub/base", ReferenceKind.FILE, True),
        (b"/pool/vms/base", ReferenceKind.FILE, True),
        (b"//pool/./vms//base", ReferenceKind.FILE, True),
        (b"../vms/base", ReferenceKind.FILE, True),
        (b"../base", ReferenceKind.FILE, False),
        (b"sub/../../base", ReferenceKind.FILE, False),
        (b"/pool/vms", ReferenceKind.FILE, False),
        (b"/pool/vms2/base", ReferenceKind.FILE, False),
        (b"/etc/passwd", ReferenceKind.FILE, False),
        (b"./a:b", ReferenceKind.FILE, True),
        (b"/dev/vda", ReferenceKind.DEVICE, False),
        (b"/x/../dev/vda", ReferenceKind.DEVICE, False),
        (b"../../dev/zero", ReferenceKind.DEVICE, False),
        (b"/proc/self/mem", ReferenceKind.DEVICE, False),
        (b"/sys", ReferenceKind.DEVICE, False),
        (b"/device", ReferenceKind.FILE, False),
        (b"nbd://127.0.0.1:1/x", ReferenceKind.NETWORK, False),
        (b"nbd:host:10809", ReferenceKind.NETWORK, False),
        (b"rbd:pool/img:conf=/etc/passwd", ReferenceKind.NETWORK, False),
        (b"fat:/etc", ReferenceKind.NETWORK, False),
        (b"file:/etc/passwd", ReferenceKind.NETWORK, False),
        (b"blkdebug:x", ReferenceKind.NETWORK, False),
        (b'json:{"driver":"raw"}', ReferenceKind.JSON, False),
        (b"json:\n{}", ReferenceKind.JSON, False),
        (b"", ReferenceKind.UNUSABLE, False),
        (b"a\0b", ReferenceKind.UNUSABLE, False),
        (b"a\x1b[2J", ReferenceKind.UNUSABLE, False),
        (b"\xff\xfe", ReferenceKind.UNUSABLE, False),
    ],
)
def test_kinds(name: bytes, kind: ReferenceKind, inside: bool) -> None:
    found = refer(name, "/pool/vms")
    assert (found.kind, found.inside) == (kind, inside)
    assert (found.path is None) is (kind not in (ReferenceKind.FILE, ReferenceKind.DEVICE))


def test_a_pool_of_devices() -> None:
    """What lies in the target is the pool's, wherever that is."""
    assert refer(b"lv", "/dev/vg") == Reference(ReferenceKind.FILE, b"lv", "/dev/vg/lv", True)
    assert refer(b"/dev/vda", "/dev/vg").kind is ReferenceKind.DEVICE
    assert refer(b"x", "/", None).inside


def test_of_an_image_outside_the_pool() -> None:
    found = refer(b"next", "/srv/base", "/pool/vms")
    assert (found.path, found.inside) == ("/srv/base/next", False)
    assert refer(b"../../pool/vms/next", "/srv/base", "/pool/vms").inside


@pytest.mark.parametrize(
    ("name", "plain"),
    [(b"data", True), (b"a:b", False), (b"./data", False), (b"..", False), (b"/d", False)],
)
def test_plain_names(name: bytes, plain: bool) -> None:
    assert refer(name, "/p").is_plain is plain


def test_places_are_compared_without_dots() -> None:
    assert refer(b"./sub/../base", "/p//q/").place == clean("//p/q/base") == "/p/q/base"
    assert refer(b"nbd:x", "/p").place is None


@given(st.binary(max_size=1100))
@settings(max_examples=300, deadline=None)
def test_every_name_is_something_that_can_be_shown(name: bytes) -> None:
    found = refer(name, "/pool/vms")
    assert str(found).isprintable()
    assert len(str(found)) < 300
    if found.path is not None:
        assert os.fsencode(found.path) in (name, b"/pool/vms/" + name)
        assert (found.place or "").startswith("/")
    if found.inside:
        assert (found.place or "").startswith("/pool/vms/")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"/abs/x:y", "/abs/x:y"),
        (b"base", "/p/base"),
        (b"sub/../base", "/p/sub/../base"),
        (b"./a:b", "/p/./a:b"),
        (b"a:b", None),
        (b"nbd://host/x", None),
        (b"json:{}", None),
        (b"", None),
        (b"a\nb", None),
        (b"a\xffb", None),
    ],
)
def test_what_is_a_local_name(name: bytes, path: str | None) -> None:
    assert refer(name, "/p").path == path


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://ann:pw@host/x", "https://host/x"),
        ("https://host/a@b", "https://host/a@b"),
        ("rbd:pool/img:id=admin:key=AQ==:mon_host=m", "rbd:pool/img:id=admin:mon_host=m"),
        ("nbd:host:10809:exportname=x", "nbd:host:10809:exportname=x"),
        (
            'json:{"driver": "https", "url": "https://u:p@h/x", "password-secret": "s"}',
            'json:{"driver": "https", "url": "https://h/x"}',
        ),
        ('json:{"a": [{"password": 1}, "ftp://u@h/"]}', 'json:{"a": [{}, "ftp://h/"]}'),
        ('json:{"driver":"nbd" , "host":"h"}', 'json:{"driver":"nbd" , "host":"h"}'),
        ('json:{"a":{"password":"s"},"a":1}', "json:"),
        ("json:{broken ann:pw@", "json:"),
        ("json:" + "[" * 100_000, "json:"),
    ],
)
def test_credentials_are_not_told(text: str, clean: str) -> None:
    assert without_credentials(text) == clean


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"a\xffb", "a\\xffb"),
        (b"a\x1b[2J\n", "a\\x1b[2J\\x0a"),
        ("a\u202eb\u00e4".encode(), "a\\u202eb\u00e4"),
        (b"a\\b'\"", "a\\b'\""),
        (b"x" * 300, "x" * 200 + "..."),
    ],
)
def test_what_is_shown_is_escaped_once(name: bytes, shown: str) -> None:
    """It is the same as the command line makes of the name itself, and stays so there."""
    assert str(refer(name, "/p")) == shown
    assert render.clean(shown) == shown
    if len(name) < 200:
        assert render.clean(os.fsdecode(name)) == shown
