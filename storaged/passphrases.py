"""The passphrases of encrypted volumes: the secrets that their definitions name.

A passphrase that is handed over with a call wins over the secret that a definition names. A volume
that is there has no name of a secret in it: it is the one that it was made with, until the next
refresh of the pool, and then the one that is for the volume's path.

Source: libvirt's behaviour.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from storaged.backend import CloneOptions, SecretUsage
from storaged.errors import InvalidArgument, StorageError
from storaged.model import SecretRef, VolumeDef, VolumeRecord
from storaged.pool import PoolObject


def of_new(pool: PoolObject, request: VolumeDef, given: bytes | None) -> bytes | None:
    """Return the passphrase for a volume that is to be made, for a worker; None if it has none.

    :param given: what was handed over.
    :raise InvalidArgument: it is to be encrypted, and not exactly one secret is named for that.
    :raise NoSuchSecret: the secret is not there, or has no value.
    :raise StorageError: whoever keeps the secrets does not answer.
    """
    encryption = request.encryption
    if given is not None or encryption is None or encryption.format != "luks":
        return given
    if len(encryption.secrets) != 1:
        raise InvalidArgument(
            "A single <secret type='passphrase'...> element is expected in encryption description",
            advice="Or hand the passphrase over: storagectl takes it from a file with"
            " --secret-file PATH",
        )
    return pool.services.host.secrets.value(SecretUsage.VOLUME, encryption.secrets[0])


def of_volume(pool: PoolObject, record: VolumeRecord, given: bytes | None) -> bytes | None:
    """Return the passphrase of a volume that is there, for a worker; None if nobody knows it.

    :param given: what was handed over.
    :raise NoSuchSecret: the secret that it was made with has gone, or it has no value.
    :raise StorageError: whoever keeps the secrets does not answer.
    """
    image = record.image
    if given is not None or image is None or image.encryption is None:
        return given
    ref = _named(pool, record.name, pool.path_of(record))
    return None if ref is None else pool.services.host.secrets.value(SecretUsage.VOLUME, ref)


def of_resized(pool: PoolObject, record: VolumeRecord, given: bytes | None) -> bytes | None:
    """As `of_volume`, for a new size: a raw volume's container needs none for that."""
    return given if record.format == "raw" else of_volume(pool, record, given)


def of_clone(
    pool: PoolObject,
    request: VolumeDef,
    origin: PoolObject,
    source: VolumeRecord,
    options: CloneOptions,
) -> CloneOptions:
    """Return the options of a clone with the passphrases that it needs, for a worker.

    A container that is copied as it is needs none: its content stays a secret.

    :param origin: the pool of the source.
    :raise StorageError: as `of_new` and `of_volume` do.
    """
    copied = request.encryption is None and source.format == "raw" == (request.format or "raw")
    opened = options.source_secret
    return replace(
        options,
        secret=of_new(pool, request, options.secret),
        source_secret=opened if copied else of_volume(origin, source, opened),
    )


def as_opened(source: VolumeRecord, options: CloneOptions) -> VolumeRecord:
    """Return the source of a clone with the capacity that its disk has, once it is unlocked.

    That of a block device is the device's, with the header of the container.
    """
    image = source.image
    if options.source_secret is None or image is None or source.format != "raw":
        return source
    return replace(source, capacity=image.capacity)


def remember(pool: PoolObject, request: VolumeDef) -> None:
    """Note which secret a volume was made with. Call it with the pool's lock held."""
    encryption = request.encryption
    if encryption is not None and encryption.secrets:
        pool.made_with[request.name] = encryption.secrets[0]
    else:
        pool.made_with.pop(request.name, None)


def describe(pool: PoolObject, found: VolumeDef) -> VolumeDef:
    """Return the description of a volume with the secret that opens it, if one is known.

    For a worker: nobody waits long for the answer.
    """
    encryption = found.encryption
    if encryption is None or encryption.secrets:
        return found
    ref = None
    with suppress(StorageError):  # what can be told without it is told
        ref = _named(pool, found.name, found.path or "")
    if ref is None:
        return found
    return replace(found, encryption=replace(encryption, secrets=(ref,)))


def _named(pool: PoolObject, name: str, path: str) -> SecretRef | None:
    """Return the secret of a volume that is there, None if there is none.

    :raise StorageError: whoever keeps the secrets does not answer.
    """
    ref = pool.made_with.get(name)
    if ref is not None:
        return ref
    uuid = pool.services.host.secrets.find(SecretUsage.VOLUME, path)
    return None if uuid is None else SecretRef(uuid=uuid, type="passphrase")
