"""What exists is valid: the constructors' rules, defaults and conversions."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
from hypothesis import given, settings

from storaged.errors import (
    ConfigUnsupported,
    InternalError,
    InvalidArgument,
    Overflow,
    StorageError,
    Unsupported,
    XMLError,
    XMLSyntaxError,
)
from storaged.model import (
    Auth,
    Cipher,
    Encryption,
    FcHostAdapter,
    IVGen,
    PCIAddress,
    Permissions,
    PoolDef,
    PoolSource,
    PoolType,
    ScsiHostAdapter,
    SecretRef,
    SourceDevice,
    SourceHost,
    VolumeDef,
    VolumeType,
)
from storaged.rules import sanitise_path
from storaged.traits import FILE_FORMATS, SourcePart, Target, traits_of
from tests import strategies

HOST = (SourceHost("h"),)
DEVICE = (SourceDevice("/dev/x"),)


def test_a_pool_without_uuid_gets_a_random_one() -> None:
    first, second = (PoolDef(PoolType.DIR, "n", target="/t") for _ in range(2))
    assert first.uuid != second.uuid
    assert first.uuid.version == 4


def test_uuid_and_type_may_be_text() -> None:
    text = cast("UUID", "C0FFEE00-0000-0000-0000-000000000001")
    pool = PoolDef("dir", "n", text, target="/t")
    assert pool.uuid == UUID("c0ffee00000000000000000000000001")
    assert pool.type is PoolType.DIR
    with pytest.raises(XMLError, match="malformed uuid element"):
        PoolDef("dir", "n", cast("UUID", "no"), target="/t")
    with pytest.raises(XMLError, match="malformed uuid element"):
        PoolDef("dir", "n", cast("UUID", 5), target="/t")


@pytest.mark.parametrize(
    ("kind", "prefix"), [(PoolType.LOGICAL, "/dev/"), (PoolType.ZFS, "/dev/zvol/")]
)
def test_forced_target_and_shared_names(kind: PoolType, prefix: str) -> None:
    named = PoolDef(kind, "pool", target="/elsewhere")
    assert (named.source.name, named.target) == ("pool", prefix + "pool")
    sourced = PoolDef(kind, source=PoolSource(name="tank"))
    assert (sourced.name, sourced.target) == ("tank", prefix + "tank")
    both = PoolDef(kind, "pool", source=PoolSource(name="tank/a"))
    assert (both.name, both.target) == ("pool", prefix + "tank/a")
    assert replace(both, source=PoolSource(name="b")).target == prefix + "b"


def test_network_types_have_no_target() -> None:
    source = PoolSource(hosts=HOST, name="images")
    pool = PoolDef(PoolType.RBD, "n", source=source, target="/t", permissions=Permissions(mode=7))
    assert (pool.target, pool.permissions) == (None, Permissions())


def test_parts_of_other_types_are_dropped() -> None:
    everything = PoolSource(HOST, DEVICE, "/d/", ScsiHostAdapter("a"), "s", "i", "nfs", vendor="v")
    assert PoolDef("dir", "n", source=everything, target="/t").source == PoolSource(vendor="v")
    kept = PoolDef("netfs", "n", source=everything, target="/t").source
    assert kept == PoolSource(hosts=HOST, dir="/d", format="nfs", vendor="v")


@pytest.mark.parametrize(
    ("kind", "format"),
    [("fs", "auto"), ("netfs", "auto"), ("logical", "lvm2"), ("disk", "unknown"), ("dir", None)],
)
def test_default_format_of_the_source(kind: str, format: str | None) -> None:
    source = PoolSource(HOST, DEVICE, "/d", name="n")
    assert PoolDef(kind, "n", source=source, target="/t").source.format == format


def test_empty_text_is_nothing() -> None:
    source = PoolSource(
        hosts=HOST, name="", dir="", initiator="", vendor="", product="", protocol=""
    )
    pool = PoolDef(PoolType.GLUSTER, "n", source=source, refresh_allocation="")
    assert pool.source == PoolSource(hosts=HOST, name="n", dir="/")
    assert pool.refresh_allocation is None


def test_unset_permissions() -> None:
    given = Permissions(mode=0, owner=-1, group=0xFFFFFFFF, label="")
    pool = PoolDef(PoolType.DIR, "n", target="/t", permissions=given)
    assert pool.permissions == Permissions(mode=0)
    assert not Permissions()
    assert Permissions(mode=0)


def test_permissions_of_a_file_leave_out_what_libvirt_does_not_know(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.touch()
    file.chmod(0o4750)
    found = Permissions.of_file(file.stat())
    assert (found.mode, found.owner) == (0o750, file.stat().st_uid)


FC = FcHostAdapter("2000000000000001", "1000000000000001")
#: what is given besides a name, error, text: in the order of the checks
BROKEN: list[tuple[str, dict[str, Any], type[StorageError], str]] = [
    ("", {}, XMLError, "Invalid value for attribute 'type' in element 'pool': ''."),
    (
        "rbd",
        {"source": PoolSource(hosts=HOST), "name": ""},
        XMLError,
        "element 'name' is mandatory for RBD pool",
    ),
    (
        "fs",
        {"source": PoolSource(format="btrfs"), "name": ""},
        ConfigUnsupported,
        "unknown pool format type btrfs",
    ),
    (
        "dir",
        {"source": PoolSource(protocol="3,x"), "name": ""},
        XMLSyntaxError,
        "storage pool protocol ver '3,x' must not contain ','",
    ),
    (
        "netfs",
        {"source": PoolSource(format="cifs", protocol="3"), "name": ""},
        ConfigUnsupported,
        "storage pool protocol ver unsupported for pool type 'cifs'",
    ),
    ("dir", {"name": "", "uuid": "x"}, XMLError, "missing pool source name element"),
    ("dir", {"name": "a/b", "uuid": "x"}, XMLError, "name a/b cannot contain '/'"),
    ("dir", {"name": "a\0b"}, XMLSyntaxError, "invalid char in name: a\0b"),
    ("disk", {"uuid": "x", "cow": True}, XMLError, "malformed uuid element"),
    (
        "netfs",
        {"cow": True},
        Unsupported,
        "cow feature may only be used for 'fs' and 'dir' pools",
    ),
    ("netfs", {}, XMLError, "missing storage pool source host name"),
    ("netfs", {"source": PoolSource(HOST)}, XMLError, "missing storage pool source path"),
    ("scsi", {}, XMLError, "missing storage pool source adapter"),
    (
        "scsi",
        {"source": PoolSource(adapter=ScsiHostAdapter())},
        XMLError,
        "Either 'name' or 'parent' must be specified for the 'scsi_host' adapter",
    ),
    (
        "scsi",
        {"source": PoolSource(adapter=ScsiHostAdapter("a", PCIAddress(), 1))},
        XMLError,
        "Both 'name' and 'parent' cannot be specified for the 'scsi_host' adapter",
    ),
    (
        "scsi",
        {"source": PoolSource(adapter=ScsiHostAdapter(None, PCIAddress()))},
        XMLError,
        "Missing or invalid scsi adapter 'unique_id' value",
    ),
    (
        "scsi",
        {"source": PoolSource(adapter=replace(FC, wwpn=""))},
        XMLError,
        "'wwnn' and 'wwpn' must be specified for adapter type 'fchost'",
    ),
    (
        "scsi",
        {"source": PoolSource(adapter=replace(FC, wwnn="20"))},
        InternalError,
        "Malformed wwn: 20",
    ),
    (
        "scsi",
        {"source": PoolSource(adapter=replace(FC, parent_fabric_wwn="g" * 16))},
        InternalError,
        f"Malformed wwn: {'g' * 16}",
    ),
    (
        "scsi",
        {"source": PoolSource(adapter=replace(FC, parent_wwnn="2" * 16))},
        XMLError,
        f"when providing parent_wwnn='{'2' * 16}', the parent_wwpn must also be provided",
    ),
    ("fs", {}, XMLError, "missing storage pool source device name"),
    ("dir", {"permissions": Permissions(mode=-1)}, XMLError, "missing storage pool target path"),
    (
        "dir",
        {"target": "/t", "permissions": Permissions(mode=0o1000, owner=-5)},
        XMLError,
        "malformed octal mode",
    ),
    (
        "dir",
        {"target": "/t", "permissions": Permissions(owner=-5, group=-5)},
        XMLError,
        "malformed owner element",
    ),
    (
        "dir",
        {"target": "/t", "permissions": Permissions(group=2**32)},
        XMLError,
        "malformed group element",
    ),
    ("iscsi-direct", {"source": PoolSource(HOST)}, ConfigUnsupported, "missing initiator IQN"),
    (
        "dir",
        {"target": "/t", "refresh_allocation": "lazy"},
        ConfigUnsupported,
        "unknown storage pool volume refresh allocation type lazy",
    ),
    (
        "fs",
        {"target": "/t", "source": PoolSource(devices=DEVICE), "mount_options": ("",)},
        XMLError,
        "empty fs mount option name specified",
    ),
    (
        "rbd",
        {"source": PoolSource(HOST, name="p"), "config_options": (("a", ""),)},
        XMLError,
        "empty rbd option value specified",
    ),
]


@pytest.mark.parametrize(("kind", "fields", "error", "detail"), BROKEN)
def test_rules_of_a_pool(
    kind: str, fields: dict[str, Any], error: type[StorageError], detail: str
) -> None:
    with pytest.raises(StorageError) as caught:
        PoolDef(kind, **{"name": "n", **fields})
    assert type(caught.value) is error
    assert caught.value.detail == detail


def test_slash_in_a_name_says_what_to_do() -> None:
    with pytest.raises(XMLError) as caught:
        PoolDef("dir", "/srv/disks", target="/t")
    assert "--target" in (caught.value.advice or "")


def test_type_of_a_plugin_has_generic_traits() -> None:
    traits = traits_of("objects")
    assert traits.parts == frozenset(SourcePart)
    assert (traits.target, traits.volume_formats) == (Target.OPTIONAL, FILE_FORMATS)
    source = PoolSource(HOST, DEVICE, "/d/", FC, "s", "i", "any")
    pool = PoolDef("objects", "n", source=source)
    assert pool.type == "objects"
    assert pool.target is None
    assert pool.source == replace(source, dir="/d")


@pytest.mark.parametrize("kind", PoolType)
def test_traits_agree_with_themselves(kind: PoolType) -> None:
    traits = traits_of(kind)
    assert traits.mandatory <= traits.parts
    assert (traits.target is Target.FORCED) == bool(traits.target_prefix)
    assert traits.volume_format(None) == (traits.volume_formats or (None,))[0]
    for name in traits.volume_formats:
        assert traits.volume_format(name) == name


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "/"),
        ("//", "//"),
        ("///", "/"),
        ("/a/", "/a"),
        ("//a//b//", "//a/b"),
        ("////a", "/a"),
        ("/a//.././b/.", "/a/.././b/."),
        ("a//b/", "a/b"),
        ("a:b//c/", "a:b/c"),
        ("nbd+tcp://h//x/", "nbd+tcp://h//x/"),
        (" /a/ ", " /a/ "),
        ("", ""),
    ],
)
def test_sanitised_paths(path: str, expected: str) -> None:
    assert sanitise_path(path) == expected


@pytest.mark.parametrize("path", ["/a" * 2_000_000, "//a" * 1_300_000, "/" * 4_000_000])
def test_the_longest_paths_take_no_time(path: str) -> None:
    began = time.process_time()
    assert "//" not in sanitise_path(path)[1:]
    assert time.process_time() - began < 0.15


@settings(max_examples=100, deadline=None)
@given(strategies.PATHS)
def test_sanitising_twice_changes_nothing(path: str) -> None:
    assert sanitise_path(sanitise_path(path)) == sanitise_path(path)


def test_pci_addresses() -> None:
    assert PCIAddress(2**32 - 1, 255, 31, 7).function == 7
    for fields in ({"bus": 256}, {"slot": 32}, {"function": 8}, {"domain": 2**32}, {"bus": -1}):
        with pytest.raises(XMLError, match="Invalid PCI address"):
            PCIAddress(**fields)


def test_secrets_and_auth() -> None:
    text = cast("UUID", "c0ffee00000000000000000000000001")
    assert SecretRef(text).uuid == UUID(text)  # type: ignore[arg-type]
    for fields, words in (
        ({}, "missing secret uuid or usage attribute"),
        ({"uuid": text, "usage": ""}, "either secret uuid or usage expected"),
        ({"uuid": ""}, "invalid secret uuid ''"),
    ):
        with pytest.raises(XMLError, match=words):
            SecretRef(**cast("dict[str, Any]", fields))
    with pytest.raises(XMLError, match="missing username for auth"):
        Auth("chap", "", SecretRef(usage="u"))
    with pytest.raises(ConfigUnsupported, match="unknown auth type 'x'"):
        Auth("x", "u", SecretRef(usage="u"))


def test_encryption() -> None:
    usage = SecretRef(usage="u")
    made = Encryption("qcow", (usage,), Cipher("aes", 256), IVGen("plain64"))
    assert made.secrets == (replace(usage, type="passphrase"),)
    assert (made.cipher, made.ivgen) == (None, None)
    with pytest.raises(XMLError, match="cipher is missing"):
        Encryption("luks", ivgen=IVGen("plain64"))
    with pytest.raises(ConfigUnsupported, match="unknown volume encryption format type rot13"):
        Encryption("rot13")
    with pytest.raises(ConfigUnsupported, match="unknown volume encryption secret type pin"):
        Encryption("luks", (SecretRef(usage="u", type="pin"),))


def test_sizes_of_a_volume_may_be_text() -> None:
    volume = VolumeDef(
        "v", cast("int", "20 GiB"), cast("int", "1.5M"), cluster_size=cast("int", "64k")
    )
    assert (volume.capacity, volume.allocation) == (20 * 2**30, 1536 * 1024)
    assert volume.cluster_size == 65536
    assert replace(volume, name="w").capacity == volume.capacity


def test_defaults_of_a_volume() -> None:
    volume = VolumeDef("v", features=cast("frozenset[str]", ["lazy_refcounts"]))
    assert volume.allocation is None
    assert volume.features == frozenset({"lazy_refcounts"})
    assert volume.compat == "1.1"
    assert VolumeDef("v", type=cast("VolumeType", "block")).type is VolumeType.BLOCK
    assert VolumeDef("v", compat="").compat is None


@pytest.mark.parametrize(
    ("fields", "error", "detail"),
    [
        ({"name": ""}, XMLError, "missing volume name element"),
        ({"name": "a\0"}, XMLSyntaxError, "invalid char in name: a\0"),
        ({"type": "tape"}, ConfigUnsupported, "unknown volume type 'tape'"),
        ({"capacity": -1}, InvalidArgument, "size must not be negative: -1"),
        ({"capacity": 2**63}, Overflow, f"value too large: {2**63}"),
        ({"allocation": "9 EiB"}, Overflow, "value too large: 9EiB"),
        ({"capacity": "a lot"}, InvalidArgument, "malformed size 'a lot'"),
        ({"compat": "2"}, XMLError, "forbidden characters in 'compat' attribute"),
        ({"features": {"v4"}}, ConfigUnsupported, "unsupported feature v4"),
        ({"cluster_size": 2**64}, Overflow, f"value too large: {2**64}"),
        ({"permissions": Permissions(mode=0o7777)}, XMLError, "malformed octal mode"),
    ],
)
def test_rules_of_a_volume(fields: dict[str, Any], error: type[StorageError], detail: str) -> None:
    with pytest.raises(StorageError) as caught:
        VolumeDef(**{"name": "v", **fields})
    assert type(caught.value) is error
    assert caught.value.detail == detail


def test_definitions_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        PoolDef("dir", "n", target="/t").name = "m"  # type: ignore[misc]


def test_the_model_loads_no_xml() -> None:
    script = "import sys, storaged.model; sys.exit('lxml' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", script], cwd=root, check=False).returncode == 0
