"""From the words POOL, VOL and SECRET to the objects they mean."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING
from uuid import UUID

from storaged.errors import InvalidArgument, NoSuchPool, NoSuchVolume, StorageError

if TYPE_CHECKING:
    from storaged import Pool, Secret, Storage, Volume


def find_pool(storage: Storage, word: str) -> Pool:
    """Return the pool that *word* names, by its name or its uuid.

    :raise NoSuchPool: there is none.
    """
    try:
        return storage.pool(word)
    except NoSuchPool:
        uuid = _as_uuid(word)
        if uuid is None:
            raise
        return storage.pool_by_uuid(uuid)


def find_volume(storage: Storage, word: str, pool: str | None = None) -> Volume:
    """Return the volume that *word* names: NAME with *pool*, POOL/NAME, a path or a key.

    A name in a pool goes before a key, and a key before a path, as for virsh.

    :raise NoSuchPool: *pool* does not exist.
    :raise NoSuchVolume: nothing fits; for a bare name the advice says which pools have it.
    """
    if pool is not None:
        return _in_pool(storage, find_pool(storage, pool), word)
    if word.startswith("/"):
        return storage.volume_by_path(word)
    volume = _in_named_pool(storage, word)
    if volume is not None:
        return volume
    try:
        return storage.volume_by_key(word)
    except NoSuchVolume as err:
        name, slash, _ = word.partition("/")
        err.advice = f"There is no pool '{name}'." if slash else _where(storage, word)
        raise


def find_secret(storage: Storage, word: str) -> Secret:
    """Return the secret that *word* names: a UUID, or KIND/ID such as ``iscsi/target1``.

    :raise NoSuchSecret: there is none.
    :raise InvalidArgument: it is neither.
    """
    uuid = _as_uuid(word)
    if uuid is not None:
        return storage.secrets.lookup(uuid)
    kind, slash, usage_id = word.partition("/")
    if not slash:
        raise InvalidArgument(
            f"'{word}' names no secret",
            advice="Give its UUID, or KIND/ID such as iscsi/target1: storagectl secret list",
        )
    return storage.secrets.lookup_usage(kind, usage_id)


def _in_pool(storage: Storage, pool: Pool, word: str) -> Volume:
    if word.startswith("/"):
        return storage.volume_by_path(word)
    try:
        return pool.volume(word)
    except NoSuchVolume:
        with suppress(NoSuchVolume):
            return storage.volume_by_key(word)
        raise


def _in_named_pool(storage: Storage, word: str) -> Volume | None:
    """Take *word* for POOL/NAME; None if it is not, for example because it is a key."""
    name, slash, rest = word.partition("/")
    if not slash or not rest:
        return None
    try:
        pool = storage.pool(name)
    except NoSuchPool:
        return None
    return pool.volume(rest)


def _where(storage: Storage, name: str) -> str:
    having = []
    for pool in storage.pools(active=True):
        try:
            pool.volume(name)
        except StorageError:
            continue
        having.append(f"{pool.name}/{name}")
    if having:
        return f"A bare name needs its pool; write {' or '.join(having)}."
    return "A bare name needs its pool; write --pool POOL or POOL/NAME."


def _as_uuid(word: str) -> UUID | None:
    try:
        return UUID(word)
    except ValueError:
        return None
