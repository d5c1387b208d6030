"""Documents that ask for volumes and say of them, there and back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings

from storaged.client.enginevalues import (
    pool_type,
    read_pool,
    read_volume,
    validate_volume,
    write_pool,
    write_volume,
)
from storaged.errors import InvalidArgument, XMLError, XMLSchemaError
from storaged.model import BackingStore, PoolDef, PoolType, VolumeDef
from storaged.target import Timestamps
from storaged.volxml import CapacityRule, format_volume, parse_volume
from tests import strategies


@settings(max_examples=150, deadline=None)
@given(strategies.volumes("dir"))
def test_a_request_arrives_as_it_was(volume: VolumeDef):
    """All but what libvirt takes from nobody, and formats that are the default anyway."""
    backing = volume.backing and BackingStore(volume.backing.path, volume.backing.format)
    # what only says where something is, or how it was found
    asked = replace(
        volume, key=None, path=None, physical=0, timestamps=None, extents=(), backing=backing,
        format=volume.format or "raw", nocow=True,
    )  # fmt: skip
    try:
        document = write_volume(asked)
    except InvalidArgument:
        return
    arrived = parse_volume(document, "dir", capacity=CapacityRule.OPTIONAL)
    assert replace(arrived, backing=backing) == asked
    assert (arrived.backing is None) == (backing is None)


def test_a_request_holds_just_what_is_asked_for():
    assert write_volume(VolumeDef("a", 5)) == (
        "<volume type='file'>\n"
        "  <name>a</name>\n"
        "  <capacity unit='bytes'>5</capacity>\n"
        "  <target>\n"
        "  </target>\n"
        "</volume>\n"
    )
    overlay = VolumeDef("a", backing=BackingStore("/b", "qcow2"))
    assert "capacity" not in write_volume(overlay)
    assert "<capacity unit='bytes'>0</capacity>" in write_volume(VolumeDef("a"))


@pytest.mark.parametrize(
    "volume",
    [VolumeDef("a\x01"), VolumeDef("a\udcff"), VolumeDef("a", backing=BackingStore("/\udcff"))],
    ids=["control", "not-utf-8", "backing"],
)
def test_what_xml_cannot_hold_is_not_sent(volume: VolumeDef):
    with pytest.raises(InvalidArgument, match="cannot be sent"):
        write_volume(volume)
    write_volume(VolumeDef("back\\slash"))


def test_a_volume_that_is_there_is_read_whole():
    there = VolumeDef(
        name="a", capacity=10, allocation=4096, format="qcow2", path="/t/a", key="/t/a",
        physical=4100, timestamps=Timestamps(1_500_000_001, 2 * 10**9, 3, 4), compat="1.1",
        cluster_size=65536, features=frozenset(),
    )  # fmt: skip
    assert read_volume(format_volume(there, "dir"), "dir") == there


def test_pools_of_plug_ins_are_read():
    definition = PoolDef("theirs", "p", target="/t")
    assert read_pool(write_pool(definition)) == definition
    assert read_pool('<pool type="theirs"><name>p</name></pool>').type == "theirs"
    assert pool_type("dir") is PoolType.DIR
    assert pool_type("theirs") == "theirs"
    with pytest.raises(XMLError):
        read_pool("<pool><name>p</name></pool>")


def test_validation_on_this_side():
    validate_volume("<volume><name>a</name><capacity>1</capacity><target/></volume>")
    with pytest.raises(XMLSchemaError):
        validate_volume("<volume><name>a</name></volume>")
