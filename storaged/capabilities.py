"""The two capabilities documents: which pool types there are, and what they can hold.

Source: libvirt's storage pool capabilities and driver capabilities.
"""

from __future__ import annotations

from collections.abc import Collection

from storaged.traits import FILE_FORMATS, PoolType, Traits, traits_of
from storaged.xmlwrite import Writer

#: The order in which libvirt's driver registers its types, which is not that of the types.
_REGISTERED = (
    *(PoolType.DIR, PoolType.FS, PoolType.NETFS, PoolType.LOGICAL, PoolType.ISCSI),
    *(PoolType.ISCSI_DIRECT, PoolType.SCSI, PoolType.MPATH, PoolType.DISK, PoolType.RBD),
    *(PoolType.SHEEPDOG, PoolType.GLUSTER, PoolType.ZFS, PoolType.VSTORAGE),
)


def pool_capabilities(supported: Collection[str]) -> str:
    """Return the document of all pool types.

    :param supported: the types that have a backend here. Those of plug-ins come last, by name.
    """
    writer = Writer()
    with writer.element("storagepoolCapabilities"):
        for kind in PoolType:
            _write_type(writer, traits_of(kind), kind in supported)
        for plugin in sorted(set(supported).difference(PoolType)):
            _write_type(writer, traits_of(plugin), True)
    return writer.finish()


def _write_type(writer: Writer, traits: Traits, supported: bool) -> None:
    with writer.element(
        "pool", ("type", str(traits.type)), ("supported", "yes" if supported else "no")
    ):
        if traits.source_formats:
            with writer.element("poolOptions"):
                # libvirt counts "unknown" first wherever a type has it
                formats = tuple(sorted(traits.source_formats, key=lambda name: name != "unknown"))
                _write_formats(writer, "sourceFormatType", traits.source_formats[0], formats)
        if traits.volume_formats and not traits.generic:
            with writer.element("volOptions"):
                default = traits.volume_formats[0]
                _write_formats(writer, "targetFormatType", default, _listed(traits))


def _listed(traits: Traits) -> tuple[str, ...]:
    """Return the volume formats that the document names; they are not quite those accepted."""
    if traits.type == PoolType.RBD:
        return ()
    if traits.volume_formats == FILE_FORMATS:
        return ("none", *FILE_FORMATS)
    return traits.volume_formats


def _write_formats(writer: Writer, name: str, default: str, values: tuple[str, ...]) -> None:
    writer.empty("defaultFormat", ("type", default))
    with writer.element("enum", ("name", name)):
        for value in values:
            writer.text("value", value)


def driver_capabilities(loaded: Collection[str]) -> str:
    """Return the document of the driver itself: the types that have a backend.

    :param loaded: these types. Those of plug-ins come last, by name.
    """
    plugins = sorted(set(loaded).difference(PoolType))
    writer = Writer()
    with writer.element("capabilities"):
        writer.blank()
        with writer.element("pool"), writer.element("enum", ("name", "type")):
            for kind in (*(kind for kind in _REGISTERED if kind in loaded), *plugins):
                writer.text("value", str(kind))
        writer.blank()
    return writer.finish()
