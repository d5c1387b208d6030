"""Pools of directories: the same calls to libvirt's daemon and to storaged.

Where storaged answers something else on purpose, the test says so with ``differs`` or ``refuses``
and the reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.storaged.differential import Failure, Pair, open_pair, pool_document, uuid_of, without

#: Two engines at work, thousands of calls: for the whole run, not for every change.
pytestmark = pytest.mark.slow

SIZES = ("capacity", "allocation", "available", "permissions")
ZEROS = "sizes of a stopped pool are 0, libvirt's are those it had"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with open_pair(tmp_path_factory.mktemp("pools")) as pair:
        yield pair


def state(pair: Pair, *names: str) -> None:
    """Compare all there is to say of pools."""
    pair.same("pools")
    for name in names:
        pair.same("flags", name)
        pair.same("pool_xml", name)
        pair.same("pool_xml", name, True)
        pair.same("pool_info", name)


def stopped(pair: Pair, name: str) -> None:
    """Compare all there is to say of a pool that has been active, but for its sizes."""
    pair.same("pools")
    pair.same("flags", name)
    for inactive in (False, True):
        theirs, ours = pair.both("pool_xml", name, inactive)
        assert without(ours, *SIZES) == without(theirs, *SIZES)


def test_unknown(pair: Pair) -> None:
    for call in ("pool_xml", "start", "stop", "undefine", "refresh", "volumes"):
        assert pair.same(call, "nobody").code == 49
    assert pair.same("pool_by_uuid", uuid_of(9)).code == 49
    for path in ("$DIR/none", "$DIR//none/", ""):
        assert pair.same("pool_by_target", path).code == 49


def test_life(pair: Pair) -> None:
    pair.same("define", pool_document("life", 1))
    state(pair, "life")
    for call in ("stop", "refresh", "volumes", "start", "delete", "build", "build", "start",
                 "start", "build", "delete", "undefine"):  # fmt: skip
        pair.same(call, "life")
        state(pair, "life")
    assert pair.same("pool_by_uuid", uuid_of(1)) == "life"
    assert pair.same("pool_by_target", "$DIR//life/") == "life"
    pair.same("stop", "life")
    assert pair.same("pool_by_target", "$DIR/life").code == 49
    pair.differs(ZEROS, "pool_xml", "life")
    stopped(pair, "life")
    for call in ("stop", "refresh", "volumes", "delete", "delete", "start", "undefine", "undefine"):
        pair.same(call, "life")
    state(pair)


def test_redefined_while_active(pair: Pair) -> None:
    pair.pool("re", 2)
    pair.same("define", pool_document("re", 2, "elsewhere"))
    state(pair, "re")
    pair.same("undefine", "re")
    pair.same("stop", "re")
    state(pair, "re")
    pair.same("start", "re")
    pair.same("start", "re", 1)
    state(pair, "re")


def test_clashes(pair: Pair) -> None:
    pair.pool("clash", 3)
    for call in ("define", "create"):
        for document in (
            pool_document("clash", 4),
            pool_document("other", 3),
            pool_document("other", 4, "clash"),
            pool_document("other", 4, "/clash//"),
        ):
            assert pair.same(call, document).code == 9
    assert pair.same("create", pool_document("clash", 3)).code == 55
    # only what runs counts, not what waits for the stop
    pair.same("define", pool_document("clash", 3, "later"))
    pair.same("define", pool_document("other", 4, "later"))
    assert pair.same("define", pool_document("third", 5, "clash")).code == 9
    pair.same("undefine", "other")


def test_created_over_a_persistent_pool(pair: Pair) -> None:
    pair.same("define", pool_document("over", 6))
    pair.on_disk(Path.mkdir, "over2")
    pair.same("create", pool_document("over", 6, "over2"))
    state(pair, "over")
    pair.same("stop", "over")
    state(pair, "over")


def test_transient(pair: Pair) -> None:
    document = pool_document("tran", 7)
    assert pair.same("create", document).code == 38
    state(pair)
    pair.same("create", document, 1)
    state(pair, "tran")
    for on in (True, False):
        pair.same("set_autostart", "tran", on)
    pair.same("undefine", "tran")
    pair.same("define", document)
    state(pair, "tran")
    pair.same("stop", "tran")
    stopped(pair, "tran")
    pair.same("undefine", "tran")
    pair.same("create", document)
    pair.same("stop", "tran")
    state(pair)


def test_autostart_links(pair: Pair) -> None:
    pair.same("define", pool_document("auto", 8))
    for on in (True, True, False, False, True):
        pair.same("set_autostart", "auto", on)
        pair.same("flags", "auto")
        links = []
        for engine in ("libvirt", "storaged"):
            link = pair.base / engine / "etc/libvirt/storage/autostart/auto.xml"
            links.append(link.readlink().name if link.is_symlink() else None)
        assert links == ["auto.xml" if on else None] * 2
    pair.same("undefine", "auto")
    for engine in ("libvirt", "storaged"):
        assert not (pair.base / engine / "etc/libvirt/storage/autostart/auto.xml").is_symlink()


def test_targets(pair: Pair) -> None:
    pair.same("define", pool_document("rel", 10).replace("$DIR/", ""))
    pair.same("build", "rel")
    pair.same("start", "rel")
    pair.same("define", pool_document("unclean", 11, "un///clean//b/./../c/"))
    for call in ("build", "start"):
        pair.same(call, "unclean")
        state(pair, "unclean")
    for path in ("un//clean/b/./../c/", "un/clean/c"):
        pair.same("pool_by_target", f"$DIR/{path}")
    pair.on_disk(lambda path: path.symlink_to("un"), "link")
    pair.same("define", pool_document("link", 12))
    for call in ("build", "start", "volumes", "stop", "delete"):
        pair.same(call, "link")
    pair.on_disk(Path.touch, "file")
    pair.same("define", pool_document("file", 13))
    assert pair.refuses_alone("a file is no directory", "build", "file").code == 38
    pair.same("start", "file")
    pair.same("delete", "file")


def test_delete(pair: Pair) -> None:
    pair.on_disk(Path.mkdir, "full")
    pair.on_disk(Path.touch, "full", "file")
    pair.same("define", pool_document("full", 14))
    assert pair.same("delete", "full").code == 38
    pair.on_disk(Path.unlink, "full", "file")
    assert pair.same("delete", "full") is None
    assert pair.same("delete", "full").code == 38
    for flags in (4, 8):
        assert pair.same("build", "full", flags).code == 55


PERMISSIONS = (
    "<mode>0700</mode>",
    "<mode>0755</mode><owner>5</owner><group>6</group>",
    "<mode>01777</mode><label>abc</label>",
    "<mode>9</mode>",
    "<mode>0</mode>",
    "<owner>-1</owner>",
    "<owner>-2</owner>",
)


def test_permissions(pair: Pair) -> None:
    for number, wanted in enumerate(PERMISSIONS, 20):
        name = f"perm{number}"
        more = f"<permissions>{wanted}</permissions>"
        pair.same("define", pool_document(name, number, "", more))
        for call in ("build", "start"):
            pair.same(call, name)
        for inactive in (False, True):
            pair.same("pool_xml", name, inactive)


def test_copy_on_write(pair: Pair) -> None:
    document = pool_document("cow", 30).replace(
        "<target>", "<features><cow state='no'/></features><target>"
    )
    for given in (document, document.replace("'no'", "'yes'"), document.replace("'no'", "'x'")):
        pair.same("define", given)
        pair.same("pool_xml", "cow")
        pair.same("build", "cow")


@pytest.mark.parametrize(
    "name", ["a/b", "", "x\ny", "x y", "é", "a&amp;b", "..", ".", "-", "t\tt", "<![CDATA[<&]]>"]
)
def test_names(pair: Pair, name: str) -> None:
    target = "<target><path>$DIR</path></target>"
    document = f"<pool type='dir'><name>{name}</name><uuid>{uuid_of(50)}</uuid>{target}</pool>"
    before = pair.same("pools")
    for call, remove in (("define", "undefine"), ("create", "stop")):
        made = pair.same(call, document)
        pair.same("pools")
        if not isinstance(made, Failure):
            pair.same("pool_xml", made)
            pair.same(remove, made)
    assert pair.same("pools") == before


@pytest.mark.parametrize("document", [
    "<pool/>",
    "<foo/>",
    "<pool type='x'/>",
    "<pool type='dir'/>",
    "<pool type='dir'><name>n</name></pool>",
    "<pool type='dir'><name>n</name><target/></pool>",
    "<pool type='dir'><name>n</name><uuid>x</uuid><target><path>/q</path></target></pool>",
])  # fmt: skip
def test_refused_documents(pair: Pair, document: str) -> None:
    for call in ("define", "create"):
        assert isinstance(pair.same(call, document), Failure)


@pytest.mark.parametrize("document", [
    "", "   ", "\n\n", "x", "<a", "<pool", "<pool>\n<name>x</nam></pool>", "<pool>\n\n\n",
    "<pool>\n  <name>x\n</pool>", "<pool>\n<a b=c/></pool>", "<pool>&foo;</pool>",
    "<pool>\n\t<a>&#1;</a></pool>", "<pool>é<\n", "<pool>\r\n<x></y>\r\n</pool>", "<pool/><x/>",
    "<pool></pool>\n\n<", "<!-- x", "<pool><![CDATA[", "<pool x='<'/>", "<?xml version='1.0'",
    "<pool>a & b</pool>", "<pool>\x01</pool>", "<pool>ü\nüü<a>ü</b></pool>",
    "<pool>" + "x" * 200 + "</a>", "<pool>\n\t \tä<a></b>\n</pool>",
])  # fmt: skip
def test_what_is_no_xml(pair: Pair, document: str) -> None:
    assert pair.same("define", document).code == 35


def test_a_doctype_is_refused(pair: Pair) -> None:
    document = (
        "<!DOCTYPE x [<!ENTITY a 'dtd'>]><pool type='dir'><name>&a;</name><target><path>/q</path>"
        "</target></pool>"
    )
    theirs, ours = pair.differs("entities are an attack", "define", document)
    assert (theirs, ours.code) == ("dtd", 35)
    pair.theirs.call("undefine", "dtd")


def test_restart(pair: Pair) -> None:
    pair.pool("active", 60)
    pair.pool("changed", 61)
    pair.same("define", pool_document("changed", 61, "changed2"))
    pair.pool("stays", 62)
    pair.same("stop", "stays")
    pair.same("define", pool_document("never", 63))
    pair.same("set_autostart", "never", True)
    pair.same("create", pool_document("passing", 64), 1)
    pair.restart()
    state(pair, "never")
    for name in ("active", "changed", "passing"):
        pair.same("pool_info", name)
        pair.same("pool_xml", name)
        pair.same("refresh", name)
    state(pair, "changed", "passing")
    theirs, ours = pair.differs("equal definitions wait for nothing", "pool_xml", "active", True)
    assert without(ours, *SIZES) == without(theirs, *SIZES)
    # The directory is there, so libvirt takes the pool for active: we do only once a boot.
    theirs, ours = pair.differs("a stopped pool stays stopped", "flags", "stays")
    assert (theirs, ours) == ([True, True, False], [False, True, False])
    pair.same("stop", "changed")
    state(pair, "changed")
    pair.on_disk(os.rmdir, "active")
    pair.restart()
    pair.same("flags", "passing")
    theirs, ours = pair.differs("what is missing is a problem, not a stop", "flags", "active")
    assert (theirs, ours) == ([False, True, False], [True, True, False])
