"""Hypothesis strategies for every legal definition: what the library's constructors accept."""

from __future__ import annotations

import string
from uuid import UUID

from hypothesis import strategies as st

from storaged.model import (
    FEATURES,
    Auth,
    BackingStore,
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
    Space,
    VolumeDef,
    VolumeType,
)
from storaged.traits import SourcePart, Target, traits_of

#: A type that no table knows.
PLUGIN = "example-objects"

SIZES = st.integers(0, 2**63 - 1)

#: Everything that XML can hold: tabs and carriage returns, but no control characters.
_LETTERS = st.one_of(
    st.sampled_from(string.ascii_letters + "&<>'\"\\ \t\n\r\x85\u2028éß漢🐧"),
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn")),
)
TEXTS = st.text(_LETTERS, min_size=1, max_size=12)
#: Also what a file name may hold and XML may not.
ODD_TEXTS = st.text(
    st.one_of(_LETTERS, st.characters(min_codepoint=1, max_codepoint=0x1F))
    | st.sampled_from("\udc80\udcff\ud800\ufffe\uffff\x7f"),
    min_size=1,
    max_size=12,
)
NAMES = TEXTS.map(lambda text: text.replace("/", "_"))
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
UUIDS = st.integers(0, 2**128 - 1).map(lambda number: UUID(int=number))
_VERSIONS = TEXTS.filter(lambda text: "," not in text)
_FLAGS = st.none() | st.booleans()
_WWN = st.from_regex(r"(0x)?[0-9a-fA-F]{16}", fullmatch=True)

PERMISSIONS = st.builds(
    Permissions,
    mode=st.none() | st.integers(0, 0o777),
    owner=st.none() | st.integers(0, 2**32 - 2),
    group=st.none() | st.integers(0, 2**32 - 2),
    label=st.none() | TEXTS,
)
SPACES = st.builds(Space, SIZES, SIZES, SIZES)


def secrets(kind: st.SearchStrategy[str | None]) -> st.SearchStrategy[SecretRef]:
    """Return references to secrets by uuid or by usage, of some attribute ``type``."""
    return st.builds(SecretRef, uuid=UUIDS, type=kind) | st.builds(
        SecretRef, usage=TEXTS | st.just(""), type=kind
    )


_AUTHS = st.builds(
    Auth, st.sampled_from(("chap", "ceph")), TEXTS, secrets(st.none() | TEXTS | st.just(""))
)
_HOSTS = st.builds(SourceHost, TEXTS | st.just(""), st.integers(-(2**31), 2**31 - 1))
_DEVICES = st.builds(SourceDevice, TEXTS, _FLAGS)
_ADDRESSES = st.builds(
    PCIAddress,
    st.integers(0, 2**32 - 1),
    st.integers(0, 255),
    st.integers(0, 31),
    st.integers(0, 7),
)
_SCSI_HOSTS = st.builds(ScsiHostAdapter, name=TEXTS) | st.builds(
    ScsiHostAdapter, parent=_ADDRESSES, unique_id=st.integers(0, 2**31 - 1)
)


@st.composite
def _fc_hosts(draw: st.DrawFn) -> FcHostAdapter:
    parents = draw(st.none() | st.tuples(_WWN, _WWN)) or (None, None)
    return FcHostAdapter(
        wwnn=draw(_WWN),
        wwpn=draw(_WWN),
        parent=draw(st.none() | TEXTS),
        parent_wwnn=parents[0],
        parent_wwpn=parents[1],
        parent_fabric_wwn=draw(st.none() | _WWN),
        managed=draw(_FLAGS),
    )


@st.composite
def sources(draw: st.DrawFn, kind: str) -> PoolSource:
    """Return a source with which a pool of that type can be."""
    traits = traits_of(kind)
    wanted = traits.mandatory

    def some(part: SourcePart, values: st.SearchStrategy[object]) -> object:
        if part not in traits.parts:
            return None
        return draw(values if part in wanted else st.none() | values)

    count = 1 if SourcePart.HOST in wanted else 0
    fewest = 1 if SourcePart.DEVICE in wanted else 0
    formats = st.sampled_from(traits.source_formats) if traits.source_formats else TEXTS
    chosen = draw(st.none() | formats) if traits.has_source_format else None
    versioned = chosen not in traits.source_formats[2:]
    name = TEXTS if kind == PoolType.RBD else st.none() | TEXTS
    return PoolSource(
        hosts=tuple(draw(st.lists(_HOSTS, min_size=count, max_size=3))),
        devices=tuple(draw(st.lists(_DEVICES, min_size=fewest, max_size=3))),
        dir=some(SourcePart.DIR, PATHS),  # type: ignore[arg-type]
        adapter=some(SourcePart.ADAPTER, _SCSI_HOSTS | _fc_hosts()),  # type: ignore[arg-type]
        name=draw(name),
        initiator=some(SourcePart.INITIATOR, TEXTS),  # type: ignore[arg-type]
        format=chosen,
        auth=draw(st.none() | _AUTHS),
        protocol=draw(st.none() | TEXTS.filter(lambda text: "," not in text))
        if versioned
        else None,
        vendor=draw(st.none() | TEXTS),
        product=draw(st.none() | TEXTS),
    )


@st.composite
def pools(draw: st.DrawFn, kind: str | None = None) -> PoolDef:
    """Return a legal pool, of any type (a plug-in's as well) if none is named."""
    kind = kind or draw(st.sampled_from((*PoolType, PLUGIN)))
    optional = traits_of(kind).target is Target.OPTIONAL
    return PoolDef(
        type=kind,
        name=draw(NAMES),
        uuid=draw(UUIDS),
        source=draw(sources(kind)),
        target=draw(st.none() | PATHS if optional else PATHS),
        permissions=draw(PERMISSIONS),
        cow=draw(_FLAGS) if kind in (PoolType.DIR, PoolType.FS) else None,
        refresh_allocation=draw(st.sampled_from((None, "default", "capacity"))),
        mount_options=tuple(draw(st.lists(TEXTS, max_size=3))),
        config_options=tuple(draw(st.lists(st.tuples(TEXTS, TEXTS), max_size=3))),
    )


@st.composite
def encryptions(draw: st.DrawFn) -> Encryption:
    """Return any legal encryption."""
    cipher = draw(st.none() | st.builds(Cipher, TEXTS, st.integers(0, 2**32 - 1), TEXTS, TEXTS))
    ivgen = draw(st.none() | st.builds(IVGen, TEXTS, st.none() | TEXTS)) if cipher else None
    return Encryption(
        format=draw(st.sampled_from(("default", "qcow", "luks", "luks2"))),
        secrets=tuple(draw(st.lists(secrets(st.just("passphrase")), max_size=2))),
        cipher=cipher,
        ivgen=ivgen,
        engine=draw(st.sampled_from((None, "qemu", "librbd"))),
    )


@st.composite
def volumes(draw: st.DrawFn, kind: str) -> VolumeDef:
    """Return a volume as a document can describe it: nothing that only storage can tell."""
    known = traits_of(kind).volume_formats
    formats = st.sampled_from(known) if known else st.none()
    return VolumeDef(
        name=draw(TEXTS),
        capacity=draw(SIZES),
        allocation=draw(SIZES),
        format=draw(formats),
        type=draw(st.sampled_from(VolumeType)),
        key=draw(st.none() | TEXTS),
        path=draw(st.none() | TEXTS),
        permissions=draw(PERMISSIONS),
        encryption=draw(st.none() | encryptions()),
        compat=draw(st.sampled_from((None, "0.10", "1.1"))),
        cluster_size=draw(st.integers(0, 2**64 - 1)),
        features=draw(st.none() | st.frozensets(st.sampled_from(FEATURES))),
        backing=draw(st.none() | st.builds(BackingStore, TEXTS, formats, PERMISSIONS)),
    )
