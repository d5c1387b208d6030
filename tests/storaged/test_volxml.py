"""Volume documents: for every feature an input, and the exact text that comes back."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree

from storaged.model import (
    BackingStore,
    Encryption,
    Permissions,
    PoolType,
    SourceExtent,
    Timestamps,
    VolumeDef,
    VolumeType,
)
from storaged.volxml import CapacityRule, format_volume, parse_volume
from tests import strategies

SECRET = "b2c7a1de-52a4-4b0e-8c36-7a0f9d1e4455"


def printed(
    *target: str, sizes: tuple[int, int] = (4096, 4096), after: str = "", kind: str = "file"
) -> str:
    lines = "".join(f"    {line}\n" for line in target)
    return (
        f"<volume type='{kind}'>\n  <name>web.img</name>\n"
        f"  <capacity unit='bytes'>{sizes[0]}</capacity>\n"
        f"  <allocation unit='bytes'>{sizes[1]}</allocation>\n"
        f"  <target>\n{lines}  </target>\n{after}</volume>\n"
    )


def given_volume(
    *, capacity: str = "<capacity>4096</capacity>", target: str = "", rest: str = ""
) -> str:
    return f"<volume><name>web.img</name>{capacity}<target>{target}</target>{rest}</volume>"


RAW = "<format type='raw'/>"
#: pool type, document, text printed
CASES = {
    "least": (
        "dir",
        "<volume><name>web.img</name><capacity>4096</capacity></volume>",
        printed(RAW),
    ),
    "sparse-with-unit": (
        "dir",
        given_volume(capacity="<capacity unit='T'>1</capacity><allocation>0</allocation>"),
        printed(RAW, sizes=(2**40, 0)),
    ),
    "decimal-unit": (
        "dir",
        given_volume(capacity="<capacity unit='gb'>3</capacity>"),
        printed(RAW, sizes=(3 * 10**9, 3 * 10**9)),
    ),
    "empty-unit-and-allocation": (
        "dir",
        given_volume(capacity="<capacity unit=''> +7</capacity><allocation/>"),
        printed(RAW, sizes=(7, 7)),
    ),
    "iso": ("dir", given_volume(target="<format type='iso'/>"), printed("<format type='iso'/>")),
    "qcow2-over-backing-in-any-order": (
        "dir",
        "<volume><backingStore><permissions><owner>107</owner><label>l</label></permissions>"
        "<format type='qcow2'/><path>/b/../base.img</path></backingStore><target><compat>0.10"
        "</compat><format type='qcow2'/></target><capacity unit='GiB'>5</capacity>"
        "<name>web.img</name></volume>",
        printed(
            "<format type='qcow2'/>",
            "<compat>0.10</compat>",
            sizes=(5 * 2**30, 5 * 2**30),
            after="  <backingStore>\n    <path>/b/../base.img</path>\n    <format type='qcow2'/>\n"
            "    <permissions>\n      <owner>107</owner>\n      <label>l</label>\n"
            "    </permissions>\n  </backingStore>\n",
        ),
    ),
    "backing-without-path-is-none": (
        "dir",
        given_volume(rest="<backingStore><format type='nonsense'/></backingStore>"),
        printed(RAW),
    ),
    "backing-default-format": (
        "dir",
        given_volume(rest="<backingStore><path>base</path></backingStore>"),
        printed(
            RAW,
            after="  <backingStore>\n    <path>base</path>\n    <format type='raw'/>\n"
            "  </backingStore>\n",
        ),
    ),
    "features-imply-compat": (
        "dir",
        given_volume(target="<features><extended_l2/><lazy_refcounts/></features>"),
        printed(
            RAW,
            "<compat>1.1</compat>",
            "<features>",
            "  <lazy_refcounts/>",
            "  <extended_l2/>",
            "</features>",
        ),
    ),
    "empty-features": (
        "dir",
        given_volume(target="<features/>"),
        printed(RAW, "<compat>1.1</compat>", "<features/>"),
    ),
    "features-of-the-wrong-version-are-read": (
        "dir",
        given_volume(target="<compat>0.10</compat><features><lazy_refcounts/></features>"),
        printed(RAW, "<compat>0.10</compat>", "<features>", "  <lazy_refcounts/>", "</features>"),
    ),
    "cluster-size": (
        "dir",
        given_volume(target="<clusterSize unit='KiB'>128</clusterSize>"),
        printed(RAW, "<clusterSize unit='B'>131072</clusterSize>"),
    ),
    "nocow-is-not-printed": ("dir", given_volume(target="<nocow/>"), printed(RAW)),
    "encryption": (
        "dir",
        given_volume(
            target="<encryption format='luks' engine='qemu'><ivgen hash='sha256' name='plain64'/>"
            "<cipher hash='sha512' mode='xts' size='256' name='aes'/>"
            f"<secret usage='disk &amp; key' type='passphrase'/>"
            f"<secret type='passphrase' uuid='{SECRET.replace('-', '')}'/></encryption>"
        ),
        printed(
            RAW,
            "<encryption format='luks' engine='qemu'>",
            "  <secret type='passphrase' usage='disk &amp; key'/>",
            f"  <secret type='passphrase' uuid='{SECRET}'/>",
            "  <cipher name='aes' size='256' mode='xts' hash='sha512'/>",
            "  <ivgen name='plain64' hash='sha256'/>",
            "</encryption>",
        ),
    ),
    "encryption-without-anything": (
        "dir",
        given_volume(target="<encryption format='qcow'><cipher/></encryption>"),
        printed(RAW, "<encryption format='qcow'>", "</encryption>"),
    ),
    "storage-alone-tells": (
        "dir",
        given_volume(
            target="<timestamps><atime>x</atime></timestamps>",
            rest="<physical>x</physical><source><device path='/d'><extent/></device></source>",
        ),
        printed(RAW),
    ),
    "partition": (
        "disk",
        given_volume(target="<format type='linux-swap'/>"),
        printed("<format type='linux-swap'/>"),
    ),
    "partition-default": ("disk", given_volume(), printed("<format type='none'/>")),
    "logical-has-no-formats": (
        "logical",
        given_volume(
            target="<format type='any'/>",
            rest="<backingStore><path>/dev/vg/origin</path><format type='any'/></backingStore>",
        ),
        printed(after="  <backingStore>\n    <path>/dev/vg/origin</path>\n  </backingStore>\n"),
    ),
    "gluster-directory": (
        "gluster",
        "<volume type='netdir'><name>web.img</name><capacity>4096</capacity><target>"
        "<format type='dir'/><permissions><mode>0755</mode><owner>-1</owner><group>0</group>"
        "</permissions></target></volume>",
        printed(
            "<format type='dir'/>",
            "<permissions>",
            "  <mode>0755</mode>",
            "  <group>0</group>",
            "</permissions>",
            kind="netdir",
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_exact_output(case: str) -> None:
    kind, document, expected = CASES[case]
    assert format_volume(parse_volume(document, kind), kind) == expected


def test_everything_that_storage_tells() -> None:
    volume = VolumeDef(
        name="a<b>.img",
        capacity=100,
        allocation=60,
        format="qcow2",
        key="/p/a<b>.img",
        path="/p/a<b>.img",
        physical=70,
        permissions=Permissions(0o600, 0, 0, "system_u:object_r:virt_image_t:s0"),
        timestamps=Timestamps(5_000_000_000, 6_000_000_007, -1, 0),
        features=frozenset({"data_file"}),
        backing=BackingStore("/base", "raw", Permissions(owner=3), Timestamps(1, 2, 3)),
        extents=(
            SourceExtent("/dev/a", 0, 10),
            SourceExtent("/dev/a", 20, 30),
            SourceExtent("/dev/b", 0, 5),
            SourceExtent("/dev/a", 40, 50),
        ),
    )
    assert (
        format_volume(volume, "dir")
        == """\
<volume type='file'>
  <name>a&lt;b&gt;.img</name>
  <key>/p/a&lt;b&gt;.img</key>
  <source>
    <device path='/dev/a'>
      <extent start='0' end='10'/>
      <extent start='20' end='30'/>
    </device>
    <device path='/dev/b'>
      <extent start='0' end='5'/>
    </device>
    <device path='/dev/a'>
      <extent start='40' end='50'/>
    </device>
  </source>
  <capacity unit='bytes'>100</capacity>
  <allocation unit='bytes'>60</allocation>
  <physical unit='bytes'>70</physical>
  <target>
    <path>/p/a&lt;b&gt;.img</path>
    <format type='qcow2'/>
    <permissions>
      <mode>0600</mode>
      <owner>0</owner>
      <group>0</group>
      <label>system_u:object_r:virt_image_t:s0</label>
    </permissions>
    <timestamps>
      <atime>5</atime>
      <mtime>6.000000007</mtime>
      <ctime>-1.999999999</ctime>
      <btime>0</btime>
    </timestamps>
    <compat>1.1</compat>
    <features>
      <data_file/>
    </features>
  </target>
  <backingStore>
    <path>/base</path>
    <format type='raw'/>
    <permissions>
      <owner>3</owner>
    </permissions>
    <timestamps>
      <atime>0.000000001</atime>
      <mtime>0.000000002</mtime>
      <ctime>0.000000003</ctime>
    </timestamps>
  </backingStore>
</volume>
"""
    )


def test_missing_allocation_is_left_to_the_driver() -> None:
    assert parse_volume(given_volume(), "dir").allocation is None
    assert parse_volume(given_volume(rest="<allocation>0</allocation>"), "dir").allocation == 0


def test_key_path_and_wish_for_no_copy_on_write_are_kept() -> None:
    volume = parse_volume(
        given_volume(target="<path>//p//x/</path><nocow/>", rest="<key>k</key>"), "dir"
    )
    assert (volume.key, volume.path, volume.nocow) == ("k", "//p//x/", True)


def test_capacity_may_be_left_out_with_a_backing_store_or_for_a_clone() -> None:
    backed = given_volume(capacity="", rest="<backingStore><path>/b</path></backingStore>")
    assert parse_volume(backed, "dir", capacity=CapacityRule.OPTIONAL).capacity == 0
    assert parse_volume(given_volume(capacity=""), "dir", capacity=CapacityRule.NONE).capacity == 0


def test_type_is_what_the_document_says() -> None:
    for kind in VolumeType:
        document = f"<volume type='{kind}'><name>n</name><capacity>1</capacity></volume>"
        assert parse_volume(document, "dir").type is kind
    assert (
        parse_volume("<volume type=''><name>n</name><capacity>1</capacity></volume>", "dir").type
        == "file"
    )


def test_volumes_of_a_plugin_are_files() -> None:
    volume = parse_volume(given_volume(target="<format type='qcow2'/>"), strategies.PLUGIN)
    assert "<format type='qcow2'/>" in format_volume(volume, strategies.PLUGIN)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_what_is_printed_is_read_back(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from((*PoolType, strategies.PLUGIN)))
    volume = data.draw(strategies.volumes(kind))
    text = format_volume(volume, kind)
    again = parse_volume(text.encode(), kind)
    assert again == volume
    assert format_volume(again, kind) == text


@settings(max_examples=60, deadline=None)
@given(strategies.ODD_TEXTS, strategies.ODD_TEXTS)
def test_any_file_name_gives_a_well_formed_document(name: str, secret: str) -> None:
    encryption = Encryption("luks", secrets=())
    volume = VolumeDef(
        name,
        1,
        1,
        "raw",
        path="/p/" + name,
        backing=BackingStore(secret, "raw"),
        encryption=encryption,
    )
    text = format_volume(volume, "dir")
    assert etree.fromstring(text.encode()).findtext("name")
    assert format_volume(parse_volume(text, "dir"), "dir") == text
