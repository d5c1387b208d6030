"""The schemas: what is printed is accepted, what they are stricter about is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from storaged.errors import Domain, XMLSchemaError
from storaged.poolxml import format_pool, parse_pool
from storaged.volxml import CapacityRule, format_volume, parse_volume
from tests.storaged import test_poolxml, test_volxml

#: Printed documents that the schema refuses though the parser does not: empty names, an initiator
#: that is no IQN, a part that the schema knows only of other types.
LOOSE_POOLS = {
    "netfs-auto-two-hosts",
    "scsi-fibre-channel",
    "iscsi-without-device",
    "iscsi-direct-drops-target",
    "dir-refresh",
    "auth-keeps-the-type-of-its-secret",
}
#: A backing path that is relative, no target at all in the input.
LOOSE_VOLUMES = {"backing-default-format"}


@pytest.mark.parametrize("case", sorted(test_poolxml.CASES.keys() - LOOSE_POOLS))
def test_printed_pools_are_accepted(case: str) -> None:
    kind, document, _ = test_poolxml.CASES[case]
    definition = parse_pool(test_poolxml.given(kind, document))
    assert parse_pool(format_pool(definition), validate=True) == definition


@pytest.mark.parametrize("case", sorted(LOOSE_POOLS))
def test_printed_pools_that_are_refused(case: str) -> None:
    kind, document, _ = test_poolxml.CASES[case]
    text = format_pool(parse_pool(test_poolxml.given(kind, document)))
    with pytest.raises(XMLSchemaError):
        parse_pool(text, validate=True)


@pytest.mark.parametrize("case", sorted(test_volxml.CASES.keys() - LOOSE_VOLUMES))
def test_printed_volumes_are_accepted(case: str) -> None:
    kind, document, expected = test_volxml.CASES[case]
    again = parse_volume(expected, kind, validate=True)
    assert format_volume(again, kind) == expected
    assert again.name == parse_volume(document, kind).name


def pool(kind: str, inner: str, name: str = "<name>n</name>", target: str = "/t") -> str:
    path = f"<target><path>{target}</path></target>" if target else ""
    return f"<pool type='{kind}'>\n{name}\n{inner}\n{path}</pool>"


DEVICE = "<device path='/dev/x'/>"
IQN = "iqn.2019-03.example:disk"
FS = "xmlns:fs='http://libvirt.org/schemas/storagepool/fs/1.0'"
MOUNT = f"<fs:mount_opts {FS}><fs:option name='ro'/></fs:mount_opts>"

#: legal for the parser, but not for the schema; the element that is to blame
REFUSED_POOLS = [
    (pool("dir", "", target=""), "pool"),
    (pool("dir", "<future/>"), "future"),
    (pool("dir", "<uuid>c0ffee00 0000 0000 0000 000000000001</uuid>"), "uuid"),
    (pool("dir", "<capacity>-1</capacity>"), "capacity"),
    (pool("dir", f"<source>{DEVICE}</source>"), "source"),
    (pool("dir", "", "<name>two\nlines</name>"), "name"),
    (pool("dir", "", target="relative"), "target/path"),
    (pool("mpath", "<refresh><volume allocation='default'/></refresh>"), "refresh"),
    (pool("fs", "<source><device path='sdb1'/></source>"), "source/device"),
    (pool("logical", ""), "pool"),
    (pool("iscsi", "<source><host name='h'/><device path='t'/></source>"), "source/device"),
    (
        pool("netfs", "<source><host name='h' port='65536'/><dir path='/d'/></source>"),
        "source/host",
    ),
    (pool("netfs", "<source><host name='h'/><dir path='d'/></source>"), "source/dir"),
]


@pytest.mark.parametrize(("document", "element"), REFUSED_POOLS)
def test_refused_pools(document: str, element: str) -> None:
    with pytest.raises(XMLSchemaError) as caught:
        parse_pool(document, validate=True)
    assert (caught.value.code, caught.value.domain) == (92, Domain.XML)
    assert caught.value.element == element
    assert caught.value.line is not None
    assert str(caught.value).startswith(
        "XML document failed to validate against schema: Unable to validate doc against "
    )


ACCEPTED_POOLS = [
    pool("logical", "<source><name>vg</name></source>", name="", target=""),
    pool("netfs", "<source><host name='h'/><dir path='d'/><format type='cifs'/></source>"),
    pool("netfs", "<source><host name='h'/><dir path='/'/></source>"),  # NFS version 4's root
    pool("netfs", MOUNT + "<source><host name='h'/><dir path='/d'/></source>"),
    pool("fs", f"<source>{DEVICE}</source>").replace("</pool>", MOUNT + "</pool>"),
    pool("iscsi", f"<source><host name='h' port='-1'/><device path='{IQN}'/></source>"),
    pool(
        "disk",
        f"<source>{DEVICE}<format type='gpt'><vendor name='v'/><product name='p'/></format>"
        "</source>",
    ),
    pool("rbd", "<source><host name='h'/><name>p</name></source><refresh/>", name="", target=""),
    pool("dir", "<allocation unit='KiB'>1</allocation><source/>"),
]


@pytest.mark.parametrize("document", ACCEPTED_POOLS)
def test_accepted_pools(document: str) -> None:
    checked, unchecked = parse_pool(document, validate=True), parse_pool(document)
    assert replace(checked, uuid=unchecked.uuid) == unchecked


def test_mount_options_of_fs_come_last() -> None:
    with pytest.raises(XMLSchemaError):
        parse_pool(pool("fs", MOUNT + f"<source>{DEVICE}</source>"), validate=True)


def volume(target: str, rest: str = "", name: str = "v", attributes: str = "") -> str:
    return (
        f"<volume{attributes}><name>{name}</name><capacity>1</capacity>\n"
        f"<target>{target}</target>\n{rest}</volume>"
    )


REFUSED_VOLUMES = [
    ("<volume><name>v</name><capacity>1</capacity></volume>", "volume"),
    (volume("", attributes=" type='ploop'"), "volume"),
    (volume("", name="."), "name"),
    (volume("", name="a/b"), "name"),
    (volume("", "<backingStore><path>relative</path></backingStore>"), "backingStore/path"),
    (volume("<timestamps><atime>-1</atime></timestamps>"), "target/timestamps/atime"),
    (
        volume("<encryption format='luks'><cipher name='aes' size='1'/></encryption>"),
        "target/encryption",
    ),
    (volume("<compat>1.</compat>"), "target/compat"),
    (volume("<permissions><mode>rw</mode></permissions>"), "target/permissions/mode"),
]


@pytest.mark.parametrize(("document", "element"), REFUSED_VOLUMES)
def test_refused_volumes(document: str, element: str) -> None:
    with pytest.raises(XMLSchemaError) as caught:
        parse_volume(document, "dir", validate=True, capacity=CapacityRule.NONE)
    assert (caught.value.code, caught.value.domain) == (92, Domain.XML)
    assert caught.value.element is not None
    assert element.startswith(caught.value.element) or caught.value.element.startswith(element)


def test_luks_is_a_word_of_the_schema_only() -> None:
    with pytest.raises(Exception, match="unknown volume format type luks"):
        parse_volume(volume("<format type='luks'/>"), "dir", validate=True)


def test_nothing_is_validated_unless_asked_for() -> None:
    assert parse_pool(pool("dir", "<future/>", target="relative")).target == "relative"


def test_threads_do_not_mix_up_their_errors() -> None:
    documents = [document for document, _ in REFUSED_POOLS] * 8

    def refusal(document: str) -> str:
        with pytest.raises(XMLSchemaError) as caught:
            parse_pool(document, validate=True)
        return str(caught.value)

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(refusal, documents))
    assert found == [refusal(document) for document in documents]
