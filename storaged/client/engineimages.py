"""The calls on images, for an engine behind a connection: only storaged has them."""

# ruff: noqa: D102 -- what the calls do is said once, at those of the driver

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from storaged.client.enginepeer import Peer
from storaged.errors import Unsupported
from storaged.facts import VolumeRef
from storaged.job import Job
from storaged.rpc.program import Procedure
from storaged.rpc.record import Record
from storaged.wirenames import volume_record

if TYPE_CHECKING:
    from storaged.formats.checkreport import CheckReport
    from storaged.imaging import ConvertOptions, HeaderChange, Inspection

R = TypeVar("R", bound=Record)
T = TypeVar("T")


class RemoteImages:
    """The calls on images; `storaged.imagecalls` says what each does."""

    #: whether what is sent stays on this host
    is_local: bool

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def volume_check(self, ref: VolumeRef, *, force: bool = False) -> Job[CheckReport]:
        from storaged.imagerecords import report_of
        from storaged.rpc import images

        self._peer.require_images("check a volume")
        wish = images.VolCheckArgs(volume_record(ref))
        return self._on_image("check", ref, images.VOL_CHECK, wish, report_of, force=force)

    def volume_inspect(self, ref: VolumeRef) -> Job[Inspection]:
        from storaged.imagerecords import inspection_of
        from storaged.rpc import images

        self._peer.require_images("inspect a volume")
        wish = images.VolCheckArgs(volume_record(ref))
        return self._on_image("inspect", ref, images.VOL_INSPECT, wish, inspection_of)

    def volume_rebase(
        self,
        ref: VolumeRef,
        backing: str | None,
        backing_format: str | None = None,
        *,
        force: bool = False,
    ) -> Job[None]:
        from storaged.rpc import images

        self._peer.require_images("rebase a volume")
        wish = images.VolRebaseArgs(volume_record(ref), backing, backing_format)
        return self._on_image("rebase", ref, images.VOL_REBASE, wish, _nothing, force=force)

    def volume_set_backing_format(
        self, ref: VolumeRef, format: str, *, force: bool = False
    ) -> Job[None]:
        from storaged.rpc import images

        self._peer.require_images("rebase a volume")
        flags = int(images.RebaseFlag.FORMAT_ONLY)
        wish = images.VolRebaseArgs(volume_record(ref), None, format, flags)
        return self._on_image("rebase", ref, images.VOL_REBASE, wish, _nothing, force=force)

    def volume_amend(self, ref: VolumeRef, change: HeaderChange) -> Job[None]:
        from storaged.imagerecords import amend_record
        from storaged.rpc import images

        self._peer.require_images("amend a volume")
        wish = amend_record(volume_record(ref), change)
        return self._on_image("amend", ref, images.VOL_AMEND, wish, _nothing)

    def volume_convert(
        self, ref: VolumeRef, options: ConvertOptions, *, force: bool = False
    ) -> Job[None]:
        from storaged.imagerecords import convert_record
        from storaged.rpc import images

        self._peer.require_images("convert a volume")
        self.require_secrecy(options.secret)
        wish = convert_record(volume_record(ref), options)
        return self._on_image("convert", ref, images.VOL_CONVERT, wish, _nothing, force=force)

    def require_secrecy(self, *secrets: bytes | None) -> None:
        """Refuse to hand a passphrase to another host, and what is none to anybody.

        :raise InvalidArgument: it is not bytes.
        :raise Unsupported: there is one, and the engine is not on this host.
        """
        if all(secret is None for secret in secrets):
            return
        from storaged.imaging import check_secrets

        check_secrets(*secrets)
        if not self.is_local:
            raise Unsupported(
                "secrets are handed over on local sockets only",
                advice="Run storagectl on that host.",
            )

    def _on_image(
        self,
        kind: str,
        ref: VolumeRef,
        procedure: Procedure[Any, R],
        wish: Record,
        convert: Callable[[R], T],
        *,
        force: bool = False,
    ) -> Job[T]:
        work: Job[Any] = Job(kind, ref.pool.name, ref.name)
        return self._peer.begin(work, procedure, wish, convert, force=force)


def _nothing(_answer: Record) -> None:
    return None
