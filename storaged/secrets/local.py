"""The secrets of a host on which no daemon of libvirt keeps them.

Source: libvirt's behaviour, with one difference: a secret that becomes ephemeral leaves no
definition behind on the disk. Libvirt leaves one, which is back, without its value, after the next
start of its daemon.
"""

from __future__ import annotations

import threading
from typing import Protocol
from uuid import UUID

from storaged.errors import Domain, InternalError, NoSuchSecret, OperationInvalid
from storaged.secrets.files import Loaded, SecretFiles
from storaged.secrets.values import ALL, SecretDef, SecretFilter, SecretKind


class Keeper(Protocol):
    """Whoever keeps secrets."""

    def all(self, wanted: SecretFilter = ALL) -> list[SecretDef]:
        """Return the secrets that pass a filter, in no order."""
        ...

    def names(self, wanted: SecretFilter = ALL) -> list[SecretDef]:
        """Return the secrets that pass a filter; of each, only uuid and use are sure to be true."""
        ...

    def by_uuid(self, uuid: UUID) -> SecretDef:
        """Return a secret.

        :raise NoSuchSecret: there is none.
        """
        ...

    def by_usage(self, kind: SecretKind, usage_id: str) -> SecretDef:
        """Return the secret for a thing.

        :raise NoSuchSecret: there is none.
        """
        ...

    def value(self, secret: SecretDef) -> bytes:
        """Return the value of a secret, also of a private one.

        :raise NoSuchSecret: it has none.
        """
        ...

    def define(self, secret: SecretDef) -> None:
        """Keep a definition.

        :raise InternalError: it contradicts one that is there.
        """
        ...

    def set_value(self, secret: SecretDef, value: bytes) -> None:
        """Give a secret its value."""
        ...

    def undefine(self, secret: SecretDef) -> None:
        """Forget a secret and its value."""
        ...


class LocalSecrets:
    """Secrets in libvirt's files, and ephemeral ones in memory.

    It may be used from several threads. Whoever changes something holds libvirt's lock.

    :param lasting: ours is a process whose memory is worth something to others.
    """

    def __init__(self, files: SecretFiles, *, lasting: bool = True) -> None:
        self._files = files
        self._lasting = lasting
        self._lock = threading.Lock()
        self._loaded: Loaded | None = None
        self._kept: dict[UUID, SecretDef] = {}
        self._ephemeral: dict[UUID, SecretDef] = {}
        #: the values of ephemeral secrets
        self._values: dict[UUID, bytes] = {}
        self._uses: dict[tuple[SecretKind, str | None], SecretDef] = {}

    def all(self, wanted: SecretFilter = ALL) -> list[SecretDef]:
        """See `Keeper.all`."""
        with self._lock:
            self._refresh()
            known = [*self._kept.values(), *self._ephemeral.values()]
        return [secret for secret in known if wanted.passes(secret)]

    def names(self, wanted: SecretFilter = ALL) -> list[SecretDef]:
        """See `Keeper.names`."""
        return self.all(wanted)

    def by_uuid(self, uuid: UUID) -> SecretDef:
        """See `Keeper.by_uuid`."""
        with self._lock:
            self._refresh()
            found = self._get(uuid)
        if found is None:
            raise no_such_uuid(uuid)
        return found

    def by_usage(self, kind: SecretKind, usage_id: str) -> SecretDef:
        """See `Keeper.by_usage`."""
        found = self.find(kind, usage_id)
        if found is None:
            raise no_such_usage(usage_id)
        return found

    def find(self, kind: SecretKind, usage_id: str) -> SecretDef | None:
        """Return the secret for a thing, None if there is none."""
        with self._lock:
            self._refresh()
            return self._uses.get((kind, usage_id))

    def problems(self) -> tuple[str, ...]:
        """Return which files could not be used, and why."""
        with self._lock:
            return self._files.load().problems

    def value(self, secret: SecretDef) -> bytes:
        """See `Keeper.value`.

        :raise InternalError: its file holds no value.
        :raise SystemFailure: its file cannot be read.
        """
        with self._lock:
            if secret.uuid in self._ephemeral:
                value = self._values.get(secret.uuid)
            else:
                value = self._files.value(secret.uuid)
        if value is None:
            raise NoSuchSecret(
                f"secret '{secret.uuid}' does not have a value", domain=Domain.SECRET
            )
        return value

    def define(self, secret: SecretDef) -> None:
        """See `Keeper.define`.

        :raise SystemFailure: it could not be written; the old definition holds.
        :raise OperationInvalid: a secret on the disk is to be kept in a memory that soon ends.
        """
        with self._lock:
            self._refresh()
            old = self._get(secret.uuid)
            self._check(secret, old)
            if secret.ephemeral and old is not None and not (old.ephemeral or self._lasting):
                raise OperationInvalid(
                    f"secret '{secret.uuid}' would end with this process, and its value with it",
                    domain=Domain.SECRET,
                    advice="A daemon keeps ephemeral secrets: systemctl start storaged",
                )
            if secret.ephemeral:
                self._keep_in_memory(secret, old)
            else:
                self._keep_in_files(secret)
            self._changed()

    def _check(self, secret: SecretDef, old: SecretDef | None) -> None:
        """Refuse a definition that contradicts another one, as libvirt does."""
        if old is not None and old.usage_id != secret.usage_id:
            shown = "(null)" if old.usage_id is None else old.usage_id
            raise InternalError(
                f"a secret with UUID {old.uuid} is already defined for use with {shown}",
                domain=Domain.SECRET,
            )
        if old is not None and old.private and not secret.private:
            raise InternalError(
                "cannot change private flag on existing secret", domain=Domain.SECRET
            )
        other = self._uses.get((secret.usage, secret.usage_id))
        if other is not None and other.uuid != secret.uuid:
            raise InternalError(
                f"a secret with UUID {other.uuid} already defined for use with {other.usage_id}",
                domain=Domain.SECRET,
            )

    def _keep_in_memory(self, secret: SecretDef, old: SecretDef | None) -> None:
        if old is not None and not old.ephemeral:
            value = self._files.value(secret.uuid)
            self._files.remove_definition(secret.uuid)
            if value is not None:
                self._values[secret.uuid] = value
            self._ephemeral[secret.uuid] = secret
            self._files.remove_value(secret.uuid)
        self._ephemeral[secret.uuid] = secret

    def _keep_in_files(self, secret: SecretDef) -> None:
        value = self._values.get(secret.uuid)
        self._files.write(secret)
        if value is not None:
            try:
                self._files.write_value(secret.uuid, value)
            except BaseException:
                self._files.remove_definition(secret.uuid)  # it is still an ephemeral one
                raise
        self._ephemeral.pop(secret.uuid, None)
        self._values.pop(secret.uuid, None)

    def set_value(self, secret: SecretDef, value: bytes) -> None:
        """See `Keeper.set_value`.

        :raise SystemFailure: it could not be written; the old one holds.
        """
        with self._lock:
            self._require(secret.uuid)
            if secret.uuid in self._ephemeral:
                self._values[secret.uuid] = value
            else:
                self._files.write_value(secret.uuid, value)

    def undefine(self, secret: SecretDef) -> None:
        """See `Keeper.undefine`.

        :raise SystemFailure: it is still there, maybe without its value.
        """
        with self._lock:
            self._require(secret.uuid)
            if self._ephemeral.pop(secret.uuid, None) is None:
                self._files.remove(secret.uuid)
            self._values.pop(secret.uuid, None)
            self._changed()

    def has_ephemeral(self) -> bool:
        """Tell whether there are secrets that end with this process."""
        return bool(self._ephemeral)

    def _require(self, uuid: UUID) -> None:
        """Raise unless the secret is still there. Call it with the lock held.

        :raise NoSuchSecret: it has gone since it was looked up.
        """
        self._refresh()
        if self._get(uuid) is None:
            raise no_such_uuid(uuid)

    def forget(self) -> None:
        """Forget what is kept in memory only."""
        with self._lock:
            self._ephemeral.clear()
            self._values.clear()
            self._changed()

    def _get(self, uuid: UUID) -> SecretDef | None:
        return self._ephemeral.get(uuid) or self._kept.get(uuid)

    def _changed(self) -> None:
        self._loaded = None

    def _refresh(self) -> None:
        """Take over what has changed in the files. Call it with the lock held."""
        loaded = self._files.load()
        if loaded is self._loaded:
            return
        self._kept = {
            uuid: one for uuid, one in loaded.secrets.items() if uuid not in self._ephemeral
        }
        known = [*self._kept.values(), *self._ephemeral.values()]
        self._uses = {
            (one.usage, one.usage_id): one for one in known if one.usage is not SecretKind.NONE
        }
        self._loaded = loaded


def no_such_uuid(uuid: UUID) -> NoSuchSecret:
    """Return libvirt's error for an uuid that no secret has."""
    return NoSuchSecret(f"no secret with matching uuid '{uuid}'", domain=Domain.SECRET)


def no_such_usage(usage_id: str) -> NoSuchSecret:
    """Return libvirt's error for a thing that no secret is for."""
    return NoSuchSecret(f"no secret with matching usage '{usage_id}'", domain=Domain.SECRET)
