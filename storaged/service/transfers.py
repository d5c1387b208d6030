"""Events and transfers: the calls after which something goes on."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final
from uuid import UUID

from storaged.errors import Domain, SystemFailure
from storaged.model import VolumeRef
from storaged.rpc import storage as rpc
from storaged.rpc.record import Void
from storaged.rpc.storage import CallbackId, EventRegisterArgs, VolStreamArgs
from storaged.service.handler import Handlers, Opened, Query, always, never, refuse_unknown
from storaged.service.records import volume_ref
from storaged.units import MAX_SIZE

if TYPE_CHECKING:
    from storaged.service.session import Session

#: The flag of both transfers: the client knows holes.
_SPARSE: Final = 1


def _register(session: Session, args: EventRegisterArgs) -> CallbackId:
    uuid = None if args.pool is None else UUID(bytes=args.pool.uuid)
    return CallbackId(session.registrations.register(args.event_id, uuid))


def _deregister(session: Session, args: CallbackId) -> Void:
    session.registrations.deregister(args.callback_id)
    return Void()


def _upload(session: Session, args: VolStreamArgs) -> Opened:
    refuse_unknown(args.flags, _SPARSE, "storageVolUpload")
    ref, length = _part(session, args)
    sink = session.driver.volume_upload(ref, args.offset, length)
    return Opened(sink=session.streams.sink(sink), sparse=bool(args.flags))


def _download(session: Session, args: VolStreamArgs) -> Opened:
    refuse_unknown(args.flags, _SPARSE, "storageVolDownload")
    ref, length = _part(session, args)
    sparse = bool(args.flags)
    source = session.driver.volume_download(ref, args.offset, length, sparse=sparse)
    return Opened(source=session.streams.source(source), sparse=sparse)


def _part(session: Session, args: VolStreamArgs) -> tuple[VolumeRef, int]:
    """Return the volume, and how much of it there can be at most.

    :raise SystemFailure: no file reaches that far.
    """
    ref = volume_ref(session.driver, args.vol)
    if args.offset > MAX_SIZE:
        path = session.driver.volume_path(ref)
        raise SystemFailure(
            f"Unable to seek {path} to {args.offset}", errno.EINVAL, domain=Domain.STREAMS
        )
    return ref, min(args.length, MAX_SIZE - args.offset)


HANDLERS: Final[Handlers] = {
    rpc.EVENT_REGISTER: Query(_register, always),
    rpc.EVENT_DEREGISTER: Query(_deregister, always),
    rpc.VOL_UPLOAD: Query(_upload, never),
    rpc.VOL_DOWNLOAD: Query(_download, never),
}
