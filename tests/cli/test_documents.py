from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import click
import pytest
from lxml import etree

from storaged.cli.documents import PoolOptions, pool_document, read, source_document
from storaged.cli.pool_define import gather
from storaged.errors import SystemFailure, XMLSyntaxError


def test_a_dir_pool():
    assert pool_document("dir", "t", PoolOptions(target="/srv/a&b")) == (
        "<pool type='dir'>\n"
        "  <name>t</name>\n"
        "  <target>\n"
        "    <path>/srv/a&amp;b</path>\n"
        "  </target>\n"
        "</pool>"
    )


def test_a_target_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    document = pool_document("dir", "t", PoolOptions(target="images/../x"))
    assert f"<path>{tmp_path}/x</path>" in document


def test_every_option_arrives_in_the_document():
    given: dict[str, Any] = {
        name: (f"v-{name}",) if name in ("source_host", "source_dev") else f"v-{name}"
        for name in PoolOptions.__dataclass_fields__
    }
    by_wwn = pool_document("scsi", "p", PoolOptions(**{**given, "adapter_name": None}))
    by_name = pool_document("scsi", "p", PoolOptions(**given))
    for name in given:
        assert f"v-{name}" in (by_name if name == "adapter_name" else by_wwn)
    etree.fromstring(by_wwn)
    etree.fromstring(by_name)


def test_several_devices_and_hosts():
    root = etree.fromstring(
        pool_document("logical", "vg", PoolOptions(source_dev=("/dev/a", "/dev/b'<")))
    )
    assert root.xpath("source/device/@path") == ["/dev/a", "/dev/b'<"]


@pytest.mark.parametrize(
    ("given", "name", "port"),
    [
        ("mon1", "mon1", None),
        ("mon1:6789", "mon1", "6789"),
        ("[fd00::2]:6789", "[fd00::2]", "6789"),
        ("[fd00::2]", "[fd00::2]", None),
        ("fd00::2", "fd00::2", None),
        ("mon1:", "mon1:", None),
        ("mon1:x", "mon1:x", None),
        (":6789", ":6789", None),
    ],
)
def test_a_host_may_have_a_port(given: str, name: str, port: str | None):
    root = etree.fromstring(pool_document("rbd", "p", PoolOptions(source_host=("a", given))))
    assert root.xpath("source/host/@name") == ["a", name]
    assert root.xpath("source/host/@port") == ([port] if port else [])


def test_what_to_look_for():
    assert source_document(None, None, None) is None
    assert source_document("nas", "2049", "iqn.x") == (
        "<source>\n"
        "  <host name='nas' port='2049'/>\n"
        "  <initiator>\n"
        "    <iqn name='iqn.x'/>\n"
        "  </initiator>\n"
        "</source>"
    )


EMPTY = {name: field.default for name, field in PoolOptions.__dataclass_fields__.items()}


def test_virshs_words_without_names():
    gathered = gather(EMPTY, ("-", "-", "/dev/sdb", "-", "/mnt"))
    assert gathered == PoolOptions(source_dev=("/dev/sdb",), target="/mnt")


@pytest.mark.parametrize(
    "words", [("-", "-", "-", "-", "/a"), ("-",) * 6], ids=["twice", "too-many"]
)
def test_words_that_do_not_fit(words):
    with pytest.raises(click.UsageError):
        gather({**EMPTY, "target": "/b"}, words)


def test_reading(tmp_path, monkeypatch):
    good, bad = tmp_path / "good.xml", tmp_path / "bad.xml"
    good.write_text("<pool/>")
    bad.write_bytes(b"<pool>\xff</pool>")
    assert read(str(good)) == "<pool/>"
    with pytest.raises(XMLSyntaxError, match="byte 6 is 0xff"):
        read(str(bad))
    with pytest.raises(SystemFailure, match="cannot read"):
        read(str(tmp_path / "none"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"<a/>")))
    assert read("-") == "<a/>"
