"""What a pool's document may not say: which error, in which words, in which order, and where."""

from __future__ import annotations

import pytest

from storaged.errors import (
    ConfigUnsupported,
    Domain,
    InternalError,
    StorageError,
    Unsupported,
    XMLError,
    XMLSyntaxError,
)
from storaged.poolxml import parse_pool

SECRET = "<secret uuid='0f0e0d0c-0b0a-0908-0706-050403020100'/>"
WWNS = "wwnn='2000000000000001' wwpn='1000000000000001'"
FS = "http://libvirt.org/schemas/storagepool/fs/1.0"
RBD = "http://libvirt.org/schemas/storagepool/rbd/1.0"


def pool(kind: str, inner: str, name: str = "<name>n</name>", target: str | None = None) -> str:
    path = "<target><path>/t</path></target>" if target is None else target
    return f"<pool type='{kind}'>{name}{inner}{path}</pool>"


def adapter(text: str) -> str:
    return pool("scsi", f"<source>{text}</source>")


def auth(text: str) -> str:
    return pool("iscsi", f"<source><host name='h'/>{text}</source>")


def host(attributes: str) -> str:
    return pool("netfs", f"<source><host {attributes}/><dir path='/d'/></source>")


def permissions(text: str) -> str:
    inner = f"<target><path>/t</path><permissions>{text}</permissions></target>"
    return pool("dir", "", target=inner)


def mount(text: str) -> str:
    inner = (
        f"<source><device path='/d'/></source><m:mount_opts xmlns:m='{FS}'>{text}</m:mount_opts>"
    )
    return pool("fs", inner)


def config(text: str) -> str:
    inner = f"<r:config_opts xmlns:r='{RBD}'>{text}</r:config_opts>"
    return pool("rbd", "<source><host name='h'/><name>p</name></source>" + inner)


VALUE = "Invalid value for attribute"
#: document, error, text without the prefix of the error's class
RULES: list[tuple[str, type[StorageError], str]] = [
    ("<pool/>", XMLError, "Missing required attribute 'type' in element 'pool'"),
    (pool("", ""), XMLError, f"{VALUE} 'type' in element 'pool': ''."),
    (pool("tape", ""), XMLError, f"{VALUE} 'type' in element 'pool': 'tape'."),
    ("<pond/>", XMLError, "expecting root element of 'pool', not 'pond'"),
    (pool("dir", "", ""), XMLError, "missing pool source name element"),
    (pool("dir", "", "<name/>"), XMLError, "missing pool source name element"),
    (pool("logical", "<source/>", ""), XMLError, "missing pool source name element"),
    (pool("dir", "", "<name>a/b</name>"), XMLError, "name a/b cannot contain '/'"),
    (
        pool("zfs", "<source><name>a/b</name></source>", ""),
        XMLError,
        "name a/b cannot contain '/'",
    ),
    (pool("dir", "<uuid>123</uuid>"), XMLError, "malformed uuid element"),
    (pool("dir", f"<uuid>{'0' * 31}-0</uuid>"), XMLError, "malformed uuid element"),
    (
        pool("mpath", "<features><cow state='yes'/></features>"),
        Unsupported,
        "cow feature may only be used for 'fs' and 'dir' pools",
    ),
    (
        pool("mpath", "<features><cow state='on'/></features>"),
        XMLError,
        f"{VALUE} 'state' in element 'cow': 'on'.",
    ),
    (pool("netfs", ""), XMLError, "missing storage pool source host name"),
    (
        pool("netfs", "<source><host name='h'/></source>"),
        XMLError,
        "missing storage pool source path",
    ),
    (pool("fs", "<source/>"), XMLError, "missing storage pool source device name"),
    (pool("disk", ""), XMLError, "missing storage pool source device name"),
    (pool("dir", "", target=""), XMLError, "missing storage pool target path"),
    (
        pool("dir", "", target="<target><path/></target>"),
        XMLError,
        "missing storage pool target path",
    ),
    (
        pool("iscsi-direct", "<source><host name='h'/></source>"),
        ConfigUnsupported,
        "missing initiator IQN",
    ),
    (
        pool("dir", "<refresh><volume allocation='lazy'/></refresh>"),
        ConfigUnsupported,
        "unknown storage pool volume refresh allocation type lazy",
    ),
    (
        pool("rbd", "<source><host name='h'/></source>"),
        XMLError,
        "element 'name' is mandatory for RBD pool",
    ),
    (pool("rbd", ""), XMLError, "missing storage pool source host name"),
    (
        pool("fs", "<source><format type='btrfs'/></source>"),
        ConfigUnsupported,
        "unknown pool format type btrfs",
    ),
    (host(""), XMLError, "missing storage pool host name"),
    (
        host("name='h' port='http'"),
        XMLError,
        f"{VALUE} 'port' in element 'host': 'http'. Expected integer value",
    ),
    (
        host("name='h' port='2147483648'"),
        XMLError,
        f"{VALUE} 'port' in element 'host': '2147483648'. Expected integer value",
    ),
    (
        pool("dir", "<source><device/></source>"),
        XMLError,
        "missing storage pool source device path",
    ),
    (
        pool("disk", "<source><device path='/d' part_separator=''/></source>"),
        XMLError,
        f"{VALUE} 'part_separator' in element 'device': ''.",
    ),
    (
        pool(
            "netfs",
            "<source><host name='h'/><dir path='/d'/><format type='cifs'/><protocol ver='3'/>"
            "</source>",
        ),
        ConfigUnsupported,
        "storage pool protocol ver unsupported for pool type 'cifs'",
    ),
    (
        pool("dir", "<source><protocol ver='4,hard'/></source>"),
        XMLSyntaxError,
        "storage pool protocol ver '4,hard' must not contain ','",
    ),
    (auth("<auth/>"), XMLError, "missing username for auth"),
    (auth("<auth type='kerberos'/>"), XMLError, "missing username for auth"),
    (
        auth("<auth type='kerberos' username='u'/>"),
        ConfigUnsupported,
        "unknown auth type 'kerberos'",
    ),
    (auth("<auth type='chap' username='u'/>"), XMLError, "Missing <secret> element in auth"),
    (
        auth("<auth type='chap' username='u'><secret/></auth>"),
        XMLError,
        "missing secret uuid or usage attribute",
    ),
    (
        auth("<auth type='chap' username='u'><secret uuid='1' usage='x'/></auth>"),
        XMLError,
        "either secret uuid or usage expected",
    ),
    (
        auth("<auth type='chap' username='u'><secret uuid=''/></auth>"),
        XMLError,
        "invalid secret uuid ''",
    ),
    (
        auth(f"<auth username='u'>{SECRET}</auth>"),
        ConfigUnsupported,
        "storage pool missing auth type",
    ),
    (
        auth(f"<auth type='none' username='u'>{SECRET}</auth>"),
        ConfigUnsupported,
        "storage pool missing auth type",
    ),
    (adapter(""), XMLError, "missing storage pool source adapter"),
    (adapter("<adapter/>"), XMLError, "missing storage pool source adapter"),
    (
        adapter("<adapter type='default' name='h'/>"),
        XMLError,
        f"{VALUE} 'type' in element 'adapter': 'default'.",
    ),
    (
        adapter("<adapter name='h' parent='p'/>"),
        XMLError,
        "Use of 'wwnn', 'wwpn', and 'parent' attributes requires use of the adapter 'type'",
    ),
    (
        adapter("<adapter name='h'><parentaddr/></adapter>"),
        XMLError,
        "Use of 'parentaddr' element requires use of the adapter 'type'",
    ),
    (
        adapter("<adapter type='scsi_host'/>"),
        XMLError,
        "Either 'name' or 'parent' must be specified for the 'scsi_host' adapter",
    ),
    (
        adapter(
            "<adapter type='scsi_host' name='h'><parentaddr unique_id='1'><address/></parentaddr>"
            "</adapter>"
        ),
        XMLError,
        "Both 'name' and 'parent' cannot be specified for the 'scsi_host' adapter",
    ),
    (
        adapter("<adapter type='scsi_host'><parentaddr unique_id='1'/></adapter>"),
        XMLError,
        "Missing scsi_host PCI address element",
    ),
    (
        adapter("<adapter type='scsi_host'><parentaddr><address/></parentaddr></adapter>"),
        XMLError,
        "Missing or invalid scsi adapter 'unique_id' value",
    ),
    (
        adapter(
            "<adapter type='scsi_host'><parentaddr unique_id='1'><address bus='0x100'/>"
            "</parentaddr></adapter>"
        ),
        XMLError,
        "Invalid PCI address bus='0x100', must be <= 0xFF",
    ),
    (
        adapter(
            "<adapter type='scsi_host'><parentaddr unique_id='1'><address slot='1' function='8'/>"
            "</parentaddr></adapter>"
        ),
        XMLError,
        "Invalid PCI address function=0x8, must be <= 7",
    ),
    (
        adapter(
            "<adapter type='scsi_host'><parentaddr unique_id='1'><address slot='09'/>"
            "</parentaddr></adapter>"
        ),
        XMLError,
        f"{VALUE} 'slot' in element 'address': '09'. Expected non-negative integer value",
    ),
    (
        adapter("<adapter type='fc_host' wwnn='2000000000000001'/>"),
        XMLError,
        "'wwnn' and 'wwpn' must be specified for adapter type 'fchost'",
    ),
    (
        adapter("<adapter type='fc_host' wwnn='2000000000000001' wwpn='1'/>"),
        InternalError,
        "Malformed wwn: 1",
    ),
    (
        adapter(f"<adapter type='fc_host' {WWNS} parent_wwpn='3000000000000001'/>"),
        XMLError,
        "when providing parent_wwpn='3000000000000001', the parent_wwnn must also be provided",
    ),
    (
        adapter(f"<adapter type='fc_host' {WWNS} managed='1'/>"),
        XMLError,
        f"{VALUE} 'managed' in element 'adapter': '1'.",
    ),
    (permissions("<mode>1777</mode>"), XMLError, "malformed octal mode"),
    (permissions("<mode>rwx</mode>"), XMLError, "malformed octal mode"),
    (permissions("<mode>-1</mode>"), XMLError, "malformed octal mode"),
    (permissions("<owner/>"), XMLError, "malformed owner element"),
    (permissions("<owner>-2</owner>"), XMLError, "malformed owner element"),
    (permissions("<owner>4294967296</owner>"), XMLError, "malformed owner element"),
    (permissions("<owner>7 </owner>"), XMLError, "malformed owner element"),
    (permissions("<group>staff</group>"), XMLError, "malformed group element"),
    (permissions(f"<group>{'9' * 5000}</group>"), XMLError, "malformed group element"),
    (mount("<m:option/>"), XMLError, "no fs mount option name specified"),
    (mount("<m:option name=''/>"), XMLError, "empty fs mount option name specified"),
    (config("<r:option value='v'/>"), XMLError, "no rbd option name specified"),
    (config("<r:option name='n' value=''/>"), XMLError, "empty rbd option value specified"),
]


@pytest.mark.parametrize(("document", "kind", "detail"), RULES)
def test_rule(document: str, kind: type[StorageError], detail: str) -> None:
    with pytest.raises(StorageError) as caught:
        parse_pool(document)
    assert type(caught.value) is kind
    assert caught.value.detail == detail
    assert caught.value.advice


#: Each document breaks two rules: the text is that of the rule which libvirt checks first.
ORDER = [
    (pool("netfs", "<source><host/><format type='q'/></source>"), "unknown pool format type q"),
    (
        pool("rbd", "<source><host/><format type='q'/></source>"),
        "element 'name' is mandatory for RBD pool",
    ),
    (
        pool("fs", "<source><device/><host/></source>"),
        "missing storage pool host name",
    ),
    (
        pool("fs", "<source><adapter type='q'/><device/></source>"),
        "missing storage pool source device path",
    ),
    (
        pool("dir", "<source><auth/><adapter type='q'/></source>"),
        f"{VALUE} 'type' in element 'adapter': 'q'.",
    ),
    (
        pool("dir", "<source><protocol ver='a,b'/><auth/></source>"),
        "missing username for auth",
    ),
    (
        pool("dir", "<source><protocol ver='a,b'/></source>", ""),
        "storage pool protocol ver 'a,b' must not contain ','",
    ),
    (pool("dir", "<uuid>x</uuid>", "<name>a/b</name>"), "name a/b cannot contain '/'"),
    (
        pool("disk", "<uuid>x</uuid><features><cow state='q'/></features>"),
        "malformed uuid element",
    ),
    (
        pool("disk", "<features><cow state='no'/></features>"),
        "cow feature may only be used for 'fs' and 'dir' pools",
    ),
    (pool("netfs", "", target=""), "missing storage pool source host name"),
    (
        pool("netfs", "<source><host name='h'/></source>", target=""),
        "missing storage pool source path",
    ),
    (pool("scsi", "", target=""), "missing storage pool source adapter"),
    (pool("fs", "", target=""), "missing storage pool source device name"),
    (
        pool("dir", "", target="<target><permissions><mode>9</mode></permissions></target>"),
        "missing storage pool target path",
    ),
    (
        pool("dir", "<refresh><volume allocation='q'/></refresh>", target=""),
        "missing storage pool target path",
    ),
    (
        pool(
            "dir",
            "<refresh><volume allocation='q'/></refresh>",
            target="<target><path>/t</path><permissions><group/><owner/></permissions></target>",
        ),
        "malformed owner element",
    ),
    (
        pool(
            "iscsi-direct",
            "<source><host name='h'/></source><refresh><volume allocation='q'/></refresh>",
        ),
        "missing initiator IQN",
    ),
    (
        pool(
            "fs",
            "<source><device path='/d'/></source><refresh><volume allocation='q'/></refresh>"
            f"<m:mount_opts xmlns:m='{FS}'><m:option/></m:mount_opts>",
        ),
        "unknown storage pool volume refresh allocation type q",
    ),
]


@pytest.mark.parametrize(("document", "detail"), ORDER)
def test_first_broken_rule_is_reported(document: str, detail: str) -> None:
    with pytest.raises(StorageError) as caught:
        parse_pool(document)
    assert caught.value.detail == detail


def test_errors_of_the_parser_itself_have_their_domain() -> None:
    for document in ("<pond/>", "<pool/>", pool("tape", ""), host("name='h' port='x'")):
        with pytest.raises(XMLError) as caught:
            parse_pool(document)
        assert caught.value.domain is Domain.XML
    with pytest.raises(XMLError) as caught:
        parse_pool(pool("dir", "", ""))
    assert caught.value.domain is Domain.STORAGE


@pytest.mark.parametrize(
    ("text", "element", "line"),
    [
        ("<pool type='dir'>\n<target>\n<path>/t</path></target></pool>", "name", 1),
        ("<pool type='dir'>\n\n<name>a/b</name></pool>", "name", 3),
        ("<pool type='dir'><name>n</name>\n<target>\n</target></pool>", "target/path", 2),
        (
            "<pool type='netfs'><name>n</name>\n<source>\n<host\nname='h' port='x'/>"
            "</source></pool>",
            "source/host",
            4,
        ),
        (
            "<pool type='dir'><name>n</name><target><path>/t</path>\n<permissions>\n"
            "<mode>8</mode></permissions></target></pool>",
            "target/permissions/mode",
            3,
        ),
        ("<pool type='fs'>\n<name>n</name>\n<source>\n</source></pool>", "source/device", 3),
        (
            "<pool type='dir'>\n<name>n</name>\n<source>\n<auth username='u' type='chap'>\n"
            "<secret/></auth></source></pool>",
            "source/auth/secret",
            5,
        ),
        (
            "<pool type='dir'>\n<name>n</name>\n<features>\n<cow state='?'/></features></pool>",
            "features/cow",
            4,
        ),
    ],
)
def test_place_of_an_error(text: str, element: str, line: int) -> None:
    with pytest.raises(XMLError) as caught:
        parse_pool(text)
    assert (caught.value.element, caught.value.line) == (element, line)
    if "/" not in caught.value.detail:
        assert caught.value.advice == f"See <{element}> in line {line}."


def test_place_of_an_error_that_is_no_xml_error() -> None:
    text = "<pool type='fs'>\n<name>n</name>\n<source>\n<format type='fat'/></source></pool>"
    with pytest.raises(ConfigUnsupported) as caught:
        parse_pool(text)
    assert caught.value.advice is not None
    assert "line 4" in caught.value.advice
    assert "ext4" in caught.value.advice


@pytest.mark.parametrize(
    "text",
    [
        "C0FFEE00000000000000000000000001",
        " c0ffee00-0000-0000-0000-000000000001\n",
        "c0 ff ee 00 0000-00000000 - 000000000001",
    ],
)
def test_spellings_of_a_uuid(text: str) -> None:
    found = parse_pool(pool("dir", f"<uuid>{text}</uuid>")).uuid
    assert str(found) == "c0ffee00-0000-0000-0000-000000000001"


def test_uuid_is_random_if_none_is_given() -> None:
    uuids = {parse_pool(pool("dir", text)).uuid for text in ("", "", "<uuid/>")}
    assert len(uuids) == 3
