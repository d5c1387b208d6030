"""Pool documents: for every type and feature an input, and the exact text that comes back."""

from __future__ import annotations

from textwrap import dedent, indent

import pytest

from storaged.errors import XMLError, XMLSyntaxError
from storaged.model import (
    FreeExtent,
    Permissions,
    PoolDef,
    PoolSource,
    PoolType,
    SourceDevice,
    SourceHost,
    Space,
)
from storaged.poolxml import define_rules, format_pool, format_sources, parse_pool, parse_source

UUID = "3f1c2b4a-8d11-4f6e-9a77-05c9d2e4b610"
FS = "http://libvirt.org/schemas/storagepool/fs/1.0"
RBD = "http://libvirt.org/schemas/storagepool/rbd/1.0"


def given(kind: str, body: str, *, name: str = "vault", attributes: str = "") -> str:
    return f"<pool type='{kind}'{attributes}><uuid>{UUID}</uuid><name>{name}</name>{body}</pool>"


def printed(kind: str, body: str, *, name: str = "vault", attributes: str = "") -> str:
    head = f"""\
<pool type='{kind}'{attributes}>
  <name>{name}</name>
  <uuid>{UUID}</uuid>
  <capacity unit='bytes'>0</capacity>
  <allocation unit='bytes'>0</allocation>
  <available unit='bytes'>0</available>
"""
    return head + indent(dedent(body), "  ") + "</pool>\n"


TARGET = "<target><path>/srv/vault</path></target>"
PRINTED_TARGET = """\
<target>
  <path>/srv/vault</path>
</target>
"""
EMPTY = "<source>\n</source>\n"


def source(*lines: str) -> str:
    return "<source>\n" + indent("\n".join(lines) + "\n", "  ") + "</source>\n"


CASES = {
    "dir": ("dir", TARGET, EMPTY + PRINTED_TARGET),
    "dir-permissions-in-any-order": (
        "dir",
        "<target><permissions><label>virt_t</label><group>36</group><mode>2</mode><owner>07</owner>"
        "</permissions><path>/srv/vault</path></target>",
        EMPTY
        + "<target>\n  <path>/srv/vault</path>\n  <permissions>\n    <mode>02</mode>\n"
        + "    <owner>7</owner>\n    <group>36</group>\n    <label>virt_t</label>\n"
        + "  </permissions>\n</target>\n",
    ),
    "dir-unset-permissions": (
        "dir",
        "<target><path>/srv/vault</path><permissions><mode/><owner>-1</owner>"
        "<group>4294967295</group><label/></permissions></target>",
        EMPTY + PRINTED_TARGET,
    ),
    "dir-mode-0": (
        "dir",
        "<target><path>/srv/vault</path><permissions><mode>0</mode></permissions></target>",
        EMPTY
        + "<target>\n  <path>/srv/vault</path>\n  <permissions>\n    <mode>00</mode>\n"
        + "  </permissions>\n</target>\n",
    ),
    "dir-owner-above-31-bits": (
        "dir",
        "<target><path>/srv/vault</path><permissions><owner>4294967294</owner></permissions>"
        "</target>",
        EMPTY
        + "<target>\n  <path>/srv/vault</path>\n  <permissions>\n"
        + "    <owner>4294967294</owner>\n  </permissions>\n</target>\n",
    ),
    "dir-path-sanitised-and-escaped": (
        "dir",
        "<target><path>/srv///a &amp; b&lt;&gt;&quot;&apos;//c/</path></target>",
        EMPTY + "<target>\n  <path>/srv/a &amp; b&lt;&gt;&quot;&apos;/c</path>\n</target>\n",
    ),
    "dir-cow": (
        "dir",
        "<features><cow state='no'/></features>" + TARGET,
        "<features>\n  <cow state='no'/>\n</features>\n" + EMPTY + PRINTED_TARGET,
    ),
    "dir-sizes-and-unknown-elements-ignored": (
        "dir",
        "<capacity unit='parsec'>many</capacity><allocation>x</allocation><future/>"
        "<source><host name='h'/><format type='nonsense'/></source>" + TARGET,
        EMPTY + PRINTED_TARGET,
    ),
    "dir-first-of-repeated-counts": (
        "dir",
        TARGET + "<target><path>/other</path></target><name>second</name>",
        EMPTY + PRINTED_TARGET,
    ),
    "dir-refresh": (
        "dir",
        TARGET + "<refresh><volume allocation='capacity'/></refresh>",
        EMPTY + PRINTED_TARGET + "<refresh>\n  <volume allocation='capacity'/>\n</refresh>\n",
    ),
    "dir-refresh-of-nothing": (
        "dir",
        TARGET + "<refresh><volume/></refresh>",
        EMPTY + PRINTED_TARGET,
    ),
    "fs": (
        "fs",
        "<source><format type='xfs'/><device path='//dev//sdq1/'/></source>" + TARGET,
        source("<device path='//dev//sdq1/'/>", "<format type='xfs'/>") + PRINTED_TARGET,
    ),
    "fs-default-format": (
        "fs",
        "<source><device path='/dev/sdq1'/><format type=''/></source>" + TARGET,
        source("<device path='/dev/sdq1'/>", "<format type='auto'/>") + PRINTED_TARGET,
    ),
    "netfs": (
        "netfs",
        "<source><dir path='/export//disks/'/><host name='filer.example' port='2050'/>"
        "<format type='nfs'/><protocol ver='4.2'/></source>" + TARGET,
        source(
            "<host name='filer.example' port='2050'/>",
            "<dir path='/export/disks'/>",
            "<format type='nfs'/>",
            "<protocol ver='4.2'/>",
        )
        + PRINTED_TARGET,
    ),
    "netfs-auto-two-hosts": (
        "netfs",
        "<source><host name='a' port='0'/><host name=''/><dir path='/x'/></source>" + TARGET,
        source("<host name='a'/>", "<host name=''/>", "<dir path='/x'/>", "<format type='auto'/>")
        + PRINTED_TARGET,
    ),
    "netfs-glusterfs": (
        "netfs",
        "<source><host name='a'/><dir path='vol7'/><format type='glusterfs'/></source>" + TARGET,
        source("<host name='a'/>", "<dir path='vol7'/>", "<format type='glusterfs'/>")
        + PRINTED_TARGET,
    ),
    "netfs-cifs": (
        "netfs",
        "<source><host name='a'/><dir path='/share'/><format type='cifs'/></source>" + TARGET,
        source("<host name='a'/>", "<dir path='/share'/>", "<format type='cifs'/>")
        + PRINTED_TARGET,
    ),
    "logical": (
        "logical",
        "<source><name>vg_tank</name><device path='/dev/sdx'/><device path='/dev/sdy'/></source>"
        "<target><path>/bogus</path></target>",
        source(
            "<device path='/dev/sdx'/>",
            "<device path='/dev/sdy'/>",
            "<name>vg_tank</name>",
            "<format type='lvm2'/>",
        )
        + "<target>\n  <path>/dev/vg_tank</path>\n</target>\n",
    ),
    "logical-name-of-the-pool": (
        "logical",
        "",
        source("<name>vault</name>", "<format type='lvm2'/>")
        + "<target>\n  <path>/dev/vault</path>\n</target>\n",
    ),
    "disk-drops-free-extents": (
        "disk",
        "<source><device path='/dev/sdz' part_separator='no'><freeExtent start='1' end='x'/>"
        "</device><format type='gpt'/></source>" + TARGET,
        source("<device path='/dev/sdz' part_separator='no'/>", "<format type='gpt'/>")
        + PRINTED_TARGET,
    ),
    "disk-default-label": (
        "disk",
        "<source><device path='/dev/sdz' part_separator='yes'/></source>" + TARGET,
        source("<device path='/dev/sdz' part_separator='yes'/>", "<format type='unknown'/>")
        + PRINTED_TARGET,
    ),
    "iscsi": (
        "iscsi",
        "<source><host name='portal.example'/><device path='iqn.2021-07.example.portal:t1'/>"
        "<initiator><iqn name='iqn.2021-07.example.host:i1'/></initiator>"
        f"<auth username='bo&amp;b' type='chap'><secret uuid='{UUID.upper()}'/></auth>"
        "<vendor name='ACME'/><product name='thin-7'/></source>" + TARGET,
        source(
            "<host name='portal.example'/>",
            "<device path='iqn.2021-07.example.portal:t1'/>",
            "<initiator>",
            "  <iqn name='iqn.2021-07.example.host:i1'/>",
            "</initiator>",
            "<auth type='chap' username='bo&amp;b'>",
            f"  <secret uuid='{UUID}'/>",
            "</auth>",
            "<vendor name='ACME'/>",
            "<product name='thin-7'/>",
        )
        + PRINTED_TARGET,
    ),
    "iscsi-without-device": (
        "iscsi",
        "<source><host name='portal.example'/><initiator><iqn name=''/></initiator></source>"
        + TARGET,
        source("<host name='portal.example'/>") + PRINTED_TARGET,
    ),
    "iscsi-direct-drops-target": (
        "iscsi-direct",
        "<source><host name='p'/><device path='iqn.t'/><initiator><iqn name='iqn.i'/></initiator>"
        "</source><target><path>/x</path><permissions><mode>9</mode></permissions></target>",
        source(
            "<host name='p'/>",
            "<device path='iqn.t'/>",
            "<initiator>",
            "  <iqn name='iqn.i'/>",
            "</initiator>",
        ),
    ),
    "scsi-legacy": (
        "scsi",
        "<source><adapter name='host4'/></source>" + TARGET,
        source("<adapter type='scsi_host' name='host4'/>") + PRINTED_TARGET,
    ),
    "scsi-parent": (
        "scsi",
        "<source><adapter type='scsi_host'><parentaddr unique_id='2'>"
        "<address slot='0x1F' bus='010' function='3'/></parentaddr></adapter></source>" + TARGET,
        source(
            "<adapter type='scsi_host'>",
            "  <parentaddr unique_id='2'>",
            "    <address domain='0x0000' bus='0x08' slot='0x1f' function='0x3'/>",
            "  </parentaddr>",
            "</adapter>",
        )
        + PRINTED_TARGET,
    ),
    "scsi-fibre-channel": (
        "scsi",
        "<source><adapter wwpn='100000051e8f3a01' wwnn='0x200000051E8F3A01' managed='yes'"
        " parent_fabric_wwn='300000051e8f3a01' parent_wwpn='500000051e8f3a01'"
        " parent_wwnn='400000051e8f3a01' parent='' type='fc_host'/></source>" + TARGET,
        source(
            "<adapter type='fc_host' parent='' parent_wwnn='400000051e8f3a01'"
            " parent_wwpn='500000051e8f3a01' parent_fabric_wwn='300000051e8f3a01' managed='yes'"
            " wwnn='0x200000051E8F3A01' wwpn='100000051e8f3a01'/>"
        )
        + PRINTED_TARGET,
    ),
    "mpath": ("mpath", TARGET, EMPTY + PRINTED_TARGET),
    "rbd": (
        "rbd",
        "<source><name>images</name><host name='2001:db8::7' port='6789'/><host name='mon2'/>"
        "<auth type='ceph' username='admin'><secret usage='ceph &lt;key&gt;'/></auth></source>"
        "<refresh><volume allocation='default'/></refresh>",
        source(
            "<host name='2001:db8::7' port='6789'/>",
            "<host name='mon2'/>",
            "<name>images</name>",
            "<auth type='ceph' username='admin'>",
            "  <secret usage='ceph &lt;key&gt;'/>",
            "</auth>",
        )
        + "<refresh>\n  <volume allocation='default'/>\n</refresh>\n",
    ),
    "auth-keeps-the-type-of-its-secret": (
        "dir",
        "<source><auth type='ceph' username='u'><secret usage='' type='volume'/></auth></source>"
        + TARGET,
        source("<auth type='ceph' username='u'>", "  <secret type='volume' usage=''/>", "</auth>")
        + PRINTED_TARGET,
    ),
    "sheepdog": (
        "sheepdog",
        "<source><host name='localhost' port='7000'/></source>",
        source("<host name='localhost' port='7000'/>", "<name>vault</name>"),
    ),
    "gluster": (
        "gluster",
        "<source><host name='brick'/><name>vol</name></source>",
        source("<host name='brick'/>", "<dir path='/'/>", "<name>vol</name>"),
    ),
    "gluster-directory": (
        "gluster",
        "<source><host name='brick'/><name>vol</name><dir path='/a//b/'/></source>",
        source("<host name='brick'/>", "<dir path='/a/b'/>", "<name>vol</name>"),
    ),
    "zfs": (
        "zfs",
        "<source><name>tank/vm</name><device path='/dev/ada1'/></source>",
        source("<device path='/dev/ada1'/>", "<name>tank/vm</name>")
        + "<target>\n  <path>/dev/zvol/tank/vm</path>\n</target>\n",
    ),
    "vstorage": (
        "vstorage",
        "<source><name>cluster9</name></source>" + TARGET,
        source("<name>cluster9</name>") + PRINTED_TARGET,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_exact_output(case: str) -> None:
    kind, document, expected = CASES[case]
    definition = parse_pool(given(kind, document))
    assert format_pool(definition) == printed(kind, expected)
    assert parse_pool(format_pool(definition)) == definition


def test_name_is_escaped() -> None:
    definition = parse_pool(given("dir", TARGET, name="a&lt;b&gt;&amp;&quot;&apos;c"))
    assert definition.name == "a<b>&\"'c"
    expected = printed("dir", EMPTY + PRINTED_TARGET, name="a&lt;b&gt;&amp;&quot;&apos;c")
    assert format_pool(definition) == expected


@pytest.mark.parametrize("prefix", ["fs", "any"])
def test_mount_options(prefix: str) -> None:
    options = (
        f"<{prefix}:mount_opts xmlns:{prefix}='{FS}'><{prefix}:option name='noatime'/>"
        f"<{prefix}:option name='sync'/></{prefix}:mount_opts>"
    )
    document = "<source><host name='h'/><dir path='/d'/></source>" + options + TARGET
    definition = parse_pool(given("netfs", document))
    assert definition.mount_options == ("noatime", "sync")
    expected = (
        source("<host name='h'/>", "<dir path='/d'/>", "<format type='auto'/>")
        + PRINTED_TARGET
        + "<fs:mount_opts>\n  <fs:option name='noatime'/>\n  <fs:option name='sync'/>\n"
        + "</fs:mount_opts>\n"
    )
    assert format_pool(definition) == printed("netfs", expected, attributes=f" xmlns:fs='{FS}'")


def test_config_options() -> None:
    options = (
        f"<r:config_opts xmlns:r='{RBD}'><r:option name='rados_mon_op_timeout' value='12'/>"
        "</r:config_opts>"
    )
    document = options + "<source><host name='h'/><name>n</name></source>"
    expected = (
        source("<host name='h'/>", "<name>n</name>")
        + "<rbd:config_opts>\n  <rbd:option name='rados_mon_op_timeout' value='12'/>\n"
        + "</rbd:config_opts>\n"
    )
    found = format_pool(parse_pool(given("rbd", document)))
    assert found == printed("rbd", expected, attributes=f" xmlns:rbd='{RBD}'")


def test_empty_options_print_no_namespace() -> None:
    document = TARGET + f"<source><device path='/d'/></source><x:mount_opts xmlns:x='{FS}'/>"
    assert "xmlns" not in format_pool(parse_pool(given("fs", document)))


def test_options_of_other_types_are_ignored() -> None:
    broken = f"<x:mount_opts xmlns:x='{FS}'><x:option/></x:mount_opts>"
    assert parse_pool(given("dir", TARGET + broken)).mount_options == ()


def test_sizes_permissions_and_free_extents_of_a_running_pool() -> None:
    device = SourceDevice("/dev/sdz", free_extents=(FreeExtent(512, 1024), FreeExtent(2048, 4096)))
    definition = PoolDef(
        PoolType.DISK, "d", source=PoolSource(devices=(device,), format="dos"), target="/dev"
    )
    text = format_pool(definition, Space(4096, 1536, 2560), permissions=Permissions(mode=0o711))
    assert "<capacity unit='bytes'>4096</capacity>" in text
    assert "<allocation unit='bytes'>1536</allocation>" in text
    assert "<available unit='bytes'>2560</available>" in text
    assert "<mode>0711</mode>" in text
    expected = """\
    <device path='/dev/sdz'>
      <freeExtent start='512' end='1024'/>
      <freeExtent start='2048' end='4096'/>
    </device>
"""
    assert expected in text


def test_type_of_a_plugin() -> None:
    document = given("objects", "<source><name>b</name><format type='s3'/></source>")
    with pytest.raises(XMLError) as caught:
        parse_pool(document)
    assert str(caught.value) == (
        "XML error: Invalid value for attribute 'type' in element 'pool': 'objects'."
    )
    definition = parse_pool(document, plugin_types={"objects"})
    assert (definition.type, definition.target) == ("objects", None)
    expected = source("<name>b</name>", "<format type='s3'/>")
    assert format_pool(definition) == printed("objects", expected)
    assert parse_pool(document, lenient=True) == definition
    assert parse_pool(document, plugin_types={"objects"}, validate=True) == definition


def test_lenient_is_about_the_type_alone() -> None:
    for document in ("<pool/>", "<pool type=''/>", "<pool type='objects'/>"):
        with pytest.raises(XMLError):
            parse_pool(document, lenient=True)


def test_newline_in_a_name_is_refused_by_define_only() -> None:
    definition = parse_pool(given("dir", TARGET, name="two\nlines"))
    with pytest.raises(XMLSyntaxError) as caught:
        define_rules(definition)
    assert caught.value.code == 35
    assert str(caught.value) == "invalid char in name: \n"
    define_rules(parse_pool(given("dir", TARGET)))


def test_sources_found() -> None:
    found = [
        PoolSource(hosts=(SourceHost("h"),), dir="/export", format="nfs"),
        PoolSource(hosts=(SourceHost("h"),), dir="vol", format="glusterfs"),
    ]
    assert (
        format_sources("netfs", found)
        == """\
<sources>
  <source>
    <host name='h'/>
    <dir path='/export'/>
    <format type='nfs'/>
  </source>
  <source>
    <host name='h'/>
    <dir path='vol'/>
    <format type='glusterfs'/>
  </source>
</sources>
"""
    )
    assert format_sources("logical", ()) == "<sources>\n</sources>\n"


def test_source_specification() -> None:
    text = "<source><host name='h' port='3260'/><initiator><iqn name='i'/></initiator></source>"
    assert parse_source("iscsi", text) == PoolSource(hosts=(SourceHost("h", 3260),), initiator="i")
    assert parse_source("netfs", "<source/>").format == "auto"
    with pytest.raises(XMLError, match="expecting root element of 'source', not 'sauce'"):
        parse_source("netfs", "<sauce/>")
