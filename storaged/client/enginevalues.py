"""Between the wire and the model: names, facts and documents.

XML is read by lxml, whose import is slow: it is loaded when a document is read for the first time,
and most commands of the client read none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from storaged.client.link import RemoteFailure
from storaged.errors import InvalidArgument
from storaged.facts import PoolInfo, PoolRef, PoolState, Space, VolumeInfo, VolumeRef
from storaged.rpc.extension import PoolFacts, VolFacts
from storaged.rpc.remoteerror import revive
from storaged.traits import PoolType
from storaged.wirenames import VOLUME_TYPES, pool_ref
from storaged.xmlwrite import Writer, escape_text

if TYPE_CHECKING:
    from storaged.model import BackingStore, Permissions, PoolDef, VolumeDef

_TYPE_OF_POOL = re.compile(r"<pool\b[^>]*?\btype\s*=\s*(?:'([^']*)'|\"([^\"]*)\")")


@contextmanager
def failures() -> Iterator[None]:
    """Raise the errors of a link as what they are.

    :raise StorageError: of the class that it was on the other side, if that is known.
    """
    try:
        yield
    except RemoteFailure as err:
        raise revive(err.error) from err


def pool_info(facts: PoolFacts) -> PoolInfo:
    """Return the state of a pool."""
    return PoolInfo(
        ref=pool_ref(facts.pool),
        state=PoolState(facts.state),
        persistent=bool(facts.persistent),
        autostart=bool(facts.autostart),
        space=Space(facts.capacity, facts.allocation, facts.available),
        problems=facts.problems,
        type=pool_type(facts.type),
        target=facts.target,
    )


def pool_type(word: str) -> PoolType | str:
    """Return the type of a pool; that of a plug-in as it is."""
    try:
        return PoolType(word)
    except ValueError:
        return word


def volume_info(pool: PoolRef, facts: VolFacts) -> VolumeInfo:
    """Return the figures of a volume."""
    return VolumeInfo(
        ref=VolumeRef(pool, facts.vol.name, facts.vol.key),
        type=VOLUME_TYPES[facts.type],
        capacity=facts.capacity,
        allocation=facts.allocation,
        physical=facts.physical,
        format=facts.format,
        path=facts.path,
        problem=facts.problem,
        building=bool(facts.building),
        data_percent=_percent(facts.data),
        metadata_percent=_percent(facts.metadata),
    )


def _percent(hundredths: int | None) -> float | None:
    return None if hundredths is None else hundredths / 100


def read_pool(text: str, *, validate: bool = False, lenient: bool = True) -> PoolDef:
    """Return the definition in a document.

    :param lenient: take also types that are not libvirt's: the other side knows its plug-ins.
    :raise XMLError: it breaks a rule.
    """
    from storaged import poolxml

    found = _TYPE_OF_POOL.search(text) if lenient else None
    kind = (found[1] or found[2] or "") if found else ""
    return poolxml.parse_pool(text, validate=validate, plugin_types=(kind,))


def write_pool(definition: PoolDef) -> str:
    """Return the document of a definition."""
    from storaged import poolxml

    return poolxml.format_pool(definition)


def read_volume(text: str, kind: str) -> VolumeDef:
    """Return all that a document says of a volume that is there.

    :param kind: the type of its pool.
    """
    from dataclasses import replace

    from storaged import volxml
    from storaged.model import Timestamps
    from storaged.xmlread import read

    found = volxml.parse_volume(text, kind, capacity=volxml.CapacityRule.NONE)
    root = read(text, "volume", "storage_volume_definition")
    times = [root.text(f"target/timestamps/{tag}") for tag in ("atime", "mtime", "ctime", "btime")]
    accessed, modified, changed, born = map(_nanoseconds, times)
    known = root.first("target/timestamps") is not None
    stamps = Timestamps(accessed or 0, modified or 0, changed or 0, born) if known else None
    return replace(found, physical=int(root.text("physical") or 0), timestamps=stamps)


def validate_volume(text: str) -> None:
    """Check a document against the schema.

    :raise XMLSchemaError: the schema refuses it.
    """
    from storaged import schema
    from storaged.xmlread import read

    schema.validate_volume(read(text, "volume", "storage_volume_definition"))


def write_volume(request: VolumeDef) -> str:
    """Return the document that asks for a volume: it holds just what is asked for.

    What is printed of a volume that is there lacks what was asked for and cannot be seen, and has
    an allocation where none was asked for. lxml is not needed to write.

    :raise InvalidArgument: a name or a path that XML cannot hold.
    """
    for text in (request.name, "" if request.backing is None else request.backing.path):
        if escape_text(text).count("\\") != text.count("\\"):
            raise InvalidArgument(f"{text!r} cannot be sent: XML cannot hold it")
    writer = Writer()
    with writer.element("volume", ("type", request.type.value)):
        writer.text("name", request.name)
        writer.text("capacity", request.capacity or _no_capacity(request), ("unit", "bytes"))
        writer.text("allocation", request.allocation, ("unit", "bytes"))
        with writer.element("target"):
            _write_target(writer, request)
        if request.backing is not None:
            _write_backing(writer, request.backing)
    return writer.finish()


def _no_capacity(request: VolumeDef) -> int | None:
    """Return what stands for a capacity of 0: nothing, if that of the backing image is meant."""
    return None if request.backing is not None else 0


def _write_target(writer: Writer, request: VolumeDef) -> None:
    if request.format is not None:
        writer.empty("format", ("type", request.format))
    _write_permissions(writer, request.permissions)
    if request.encryption is not None:
        from storaged.encryptionxml import write_encryption

        write_encryption(writer, request.encryption)
    writer.text("compat", request.compat)
    writer.text("clusterSize", request.cluster_size or None, ("unit", "B"))
    if request.features:
        with writer.element("features"):
            for feature in sorted(request.features):
                writer.empty(feature)
    elif request.features is not None:
        writer.empty("features")
    if request.nocow:
        writer.empty("nocow")


def _write_backing(writer: Writer, backing: BackingStore) -> None:
    with writer.element("backingStore"):
        writer.text("path", backing.path)
        if backing.format is not None:
            writer.empty("format", ("type", backing.format))


def _write_permissions(writer: Writer, permissions: Permissions) -> None:
    mode = None if permissions.mode is None else f"0{permissions.mode:o}"
    if (mode, permissions.owner, permissions.group, permissions.label) == (None,) * 4:
        return
    with writer.element("permissions"):
        writer.text("mode", mode)
        writer.text("owner", permissions.owner)
        writer.text("group", permissions.group)
        writer.text("label", permissions.label)


def _nanoseconds(text: str | None) -> int | None:
    if text is None:
        return None
    seconds, _, fraction = text.partition(".")
    return int(seconds) * 10**9 + int(fraction.ljust(9, "0")[:9])
