"""What a caller of the library holds of a secret, and of all of them.

::

    secret = storage.secrets.define(SecretDef(uuid4(), SecretKind.ISCSI, "target1"))
    secret.set_value(passphrase)

A secret is the password of a pool's server or the passphrase of encrypted volumes, known by its
uuid and by what it is for. They are libvirt's: what is defined here, virsh shows, and the other
way round.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING
from uuid import UUID

from storaged.errors import Domain, InvalidArgument
from storaged.secrets.values import SecretDef, SecretFilter, SecretKind

if TYPE_CHECKING:
    from storaged.engine import Engine
    from storaged.secrets.values import SecretEvent


class Secret:
    """A secret of an engine. Two that have the same uuid there are equal.

    Its value is shown by nothing but `value`.
    """

    def __init__(self, engine: Engine, uuid: UUID) -> None:
        self._engine = engine
        self.uuid = uuid

    def __repr__(self) -> str:
        return f"<Secret {self.uuid}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return (self._engine, self.uuid) == (other._engine, other.uuid)

    def __hash__(self) -> int:
        return hash(self.uuid)

    def definition(self) -> SecretDef:
        """Return what the secret is and what it is for.

        :raise NoSuchSecret: it has gone.
        """
        return self._engine.secret_lookup_by_uuid(self.uuid)

    def xml(self) -> str:
        """Return the definition as libvirt prints it.

        :raise NoSuchSecret: it has gone.
        """
        return self._engine.secret_xml(self.uuid)

    def value(self) -> bytes:
        """Return the value.

        :raise NoSuchSecret: it has none, or has gone.
        :raise InvalidSecret: it is private: those who use it are told, nobody else.
        """
        return self._engine.secret_value(self.uuid)

    def set_value(self, value: bytes) -> None:
        """Give the secret its value, of 1 to 65,536 bytes.

        :raise InvalidArgument: it is too long, or empty.
        :raise NoSuchSecret: it has gone.
        """
        if not value:
            raise InvalidArgument("the value of a secret cannot be empty", domain=Domain.SECRET)
        self._engine.secret_set_value(self.uuid, value)

    def undefine(self) -> None:
        """Forget the secret and its value.

        :raise NoSuchSecret: it has gone.
        """
        self._engine.secret_undefine(self.uuid)


class Secrets:
    """The secrets of an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def definitions(
        self, *, ephemeral: bool | None = None, private: bool | None = None
    ) -> list[SecretDef]:
        """Return the secrets' definitions, sorted by uuid; None lets both kinds pass.

        :param ephemeral: only those that are never written to a disk, or only the others.
        :param private: only those whose value is told to nobody, or only the others.
        """
        found = self._engine.secrets(_wanted(ephemeral, private))
        return sorted(found, key=lambda secret: secret.uuid)

    def list(self, *, ephemeral: bool | None = None, private: bool | None = None) -> list[Secret]:
        """Return the secrets whose definitions `definitions` would return, which takes longer."""
        found = self._engine.secret_names(_wanted(ephemeral, private))
        return [Secret(self._engine, uuid) for uuid in sorted(each.uuid for each in found)]

    def lookup(self, uuid: UUID | str) -> Secret:
        """Return a secret by its uuid.

        :raise NoSuchSecret: there is none.
        :raise InvalidArgument: that is no uuid.
        """
        if isinstance(uuid, str):
            try:
                uuid = UUID(uuid)
            except ValueError as err:
                raise InvalidArgument(f"malformed uuid '{uuid}'", domain=Domain.SECRET) from err
        return Secret(self._engine, self._engine.secret_lookup_by_uuid(uuid).uuid)

    def lookup_usage(self, kind: SecretKind | str, usage_id: str) -> Secret:
        """Return the secret for a thing.

        :param kind: ``volume``, ``ceph``, ``iscsi``, ``tls`` or ``vtpm``.
        :param usage_id: the thing: the path of a volume, the name of a target ...
        :raise NoSuchSecret: there is none.
        :raise InvalidArgument: there is no such kind.
        """
        try:
            known = SecretKind(kind)
        except ValueError as err:
            raise InvalidArgument(f"no kind of secret '{kind}'", domain=Domain.SECRET) from err
        return Secret(self._engine, self._engine.secret_lookup_by_usage(known, usage_id).uuid)

    def define(self, definition: SecretDef | str, *, validate: bool = False) -> Secret:
        """Keep a definition (or its XML); the value of a secret that is there already stays.

        :param validate: check the XML against the schema first.
        :raise InternalError: another secret is for the same thing, or an existing one would become
            for something else or no longer private.
        """
        if not isinstance(definition, str):
            from storaged.secrets.document import format_secret

            definition = format_secret(definition)
        return Secret(
            self._engine, self._engine.secret_define_xml(definition, validate=validate).uuid
        )

    def subscribe(self, callback: Callable[[SecretEvent], None]) -> Callable[[], None]:
        """Have *callback* called for each event of a secret; returns a function that ends it.

        A daemon tells of each only which secret it is and what it is for.
        """
        return self._engine.secret_events.subscribe(callback)


def _wanted(ephemeral: bool | None, private: bool | None) -> SecretFilter:
    """Return the filter of a list; None lets both kinds pass."""
    wanted = SecretFilter(0)
    for choice, yes, no in (
        (ephemeral, SecretFilter.EPHEMERAL, SecretFilter.NO_EPHEMERAL),
        (private, SecretFilter.PRIVATE, SecretFilter.NO_PRIVATE),
    ):
        if choice is not None:
            wanted |= yes if choice else no
    return wanted
