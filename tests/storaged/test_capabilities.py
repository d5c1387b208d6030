"""The two capabilities documents, whole."""

from __future__ import annotations

import pytest

from storaged.capabilities import driver_capabilities, pool_capabilities
from storaged.schema import validate_capabilities
from storaged.traits import PoolType
from storaged.xmlread import read

FILES = (
    *("none", "raw", "dir", "bochs", "cloop", "dmg", "iso", "vpc", "vdi", "fat", "vhd", "ploop"),
    *("cow", "qcow", "qcow2", "qed", "vmdk"),
)
PARTITIONS = (
    *("none", "linux", "fat16", "fat32", "linux-swap", "linux-lvm", "linux-raid", "extended"),
)
FILE_SYSTEMS = (
    *("auto", "ext2", "ext3", "ext4", "ufs", "iso9660", "udf", "gfs", "gfs2", "vfat", "hfs+"),
    *("xfs", "ocfs2", "vmfs"),
)
LABELS = ("unknown", "dos", "dvh", "gpt", "mac", "bsd", "pc98", "sun", "lvm2")
#: type, default and values of the source's format, the same of the volumes'
EXPECTED = (
    ("dir", None, ("raw", FILES)),
    ("fs", ("auto", FILE_SYSTEMS), ("raw", FILES)),
    ("netfs", ("auto", ("auto", "nfs", "glusterfs", "cifs")), ("raw", FILES)),
    ("logical", ("lvm2", ("unknown", "lvm2")), None),
    ("disk", ("unknown", LABELS), ("none", PARTITIONS)),
    ("iscsi", None, None),
    ("iscsi-direct", None, None),
    ("scsi", None, None),
    ("mpath", None, None),
    ("rbd", None, ("raw", ())),
    ("sheepdog", None, None),
    ("gluster", None, ("raw", FILES)),
    ("zfs", None, None),
    ("vstorage", None, ("raw", FILES)),
)


def _options(tag: str, enum: str, formats: tuple[str, tuple[str, ...]] | None) -> list[str]:
    if formats is None:
        return []
    default, values = formats
    return [
        f"    <{tag}>",
        f"      <defaultFormat type='{default}'/>",
        f"      <enum name='{enum}'>",
        *(f"        <value>{value}</value>" for value in values),
        "      </enum>",
        f"    </{tag}>",
    ]


def expected(supported: set[str]) -> str:
    lines = ["<storagepoolCapabilities>"]
    for kind, sources, volumes in EXPECTED:
        lines.append(f"  <pool type='{kind}' supported='{'yes' if kind in supported else 'no'}'>")
        lines += _options("poolOptions", "sourceFormatType", sources)
        lines += _options("volOptions", "targetFormatType", volumes)
        lines.append("  </pool>")
    return "\n".join((*lines, "</storagepoolCapabilities>", ""))


@pytest.mark.parametrize("supported", [set(), {"fs"}, set(PoolType)], ids=("none", "fs", "all"))
def test_pool_capabilities(supported: set[str]) -> None:
    text = pool_capabilities(supported)
    assert text == expected(supported)
    validate_capabilities(read(text, "storagepoolCapabilities", "x"))


def test_types_of_plugins_come_last() -> None:
    text = pool_capabilities({"zz-top", "dir", "alpha"})
    plugins = (
        "  <pool type='alpha' supported='yes'>\n  </pool>\n"
        "  <pool type='zz-top' supported='yes'>\n  </pool>\n"
        "</storagepoolCapabilities>\n"
    )
    assert text == expected({"dir"}).removesuffix("</storagepoolCapabilities>\n") + plugins


def test_driver_capabilities_follow_the_order_of_registration() -> None:
    values = (
        *("dir", "fs", "netfs", "logical", "iscsi", "iscsi-direct", "scsi", "mpath", "disk"),
        *("rbd", "sheepdog", "gluster", "zfs", "vstorage", "plugged"),
    )
    assert driver_capabilities({*PoolType, "plugged"}) == "\n".join(
        (
            "<capabilities>",
            "",
            "  <pool>",
            "    <enum name='type'>",
            *(f"      <value>{value}</value>" for value in values),
            "    </enum>",
            "  </pool>",
            "",
            "</capabilities>",
            "",
        )
    )
    assert "<value>" not in driver_capabilities(())
