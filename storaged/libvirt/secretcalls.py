"""The methods of a connection that are about secrets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from storaged.libvirt import errorconstants as numbers
from storaged.libvirt.arguments import flags as as_flags
from storaged.libvirt.arguments import number, parse_uuid, text, uuid_bytes
from storaged.libvirt.errors import refuse_argument, refuse_foreign
from storaged.libvirt.handle import Handle
from storaged.libvirt.registrations import SECRETS, Registrations
from storaged.libvirt.secret import virSecret
from storaged.rpc import secret as rpc
from storaged.rpc import storage
from storaged.rpc.record import Void

if TYPE_CHECKING:
    from storaged.libvirt.connection import virConnect

_DOMAIN: Final = numbers.VIR_FROM_SECRET
_NO_NULL: Final = "must not be NULL"


class SecretMethods(ABC):
    """What `virConnect` knows of secrets."""

    _registrations: Registrations

    @abstractmethod
    def _open(self, function: str, domain: int = numbers.VIR_FROM_STORAGE) -> Handle:
        """Return the handle of a connection that is not closed."""

    def numOfSecrets(self) -> int:  # noqa: N802
        """Return how many secrets there are."""
        handle = self._open("virConnectNumOfSecrets", _DOMAIN)
        return handle.call(rpc.NUM_OF_SECRETS, Void()).num

    def listSecrets(self) -> list[str]:  # noqa: N802
        """Return the uuids of the secrets, as text."""
        count = self.numOfSecrets()
        if not count:
            return []
        handle = self._open("virConnectListSecrets", _DOMAIN)
        return list(handle.call(rpc.LIST_SECRETS, rpc.MaxUuids(count)).uuids)

    def listAllSecrets(self, flags: int = 0) -> list[virSecret]:  # noqa: N802
        """Return the secrets, those that ``VIR_CONNECT_LIST_SECRETS_*`` choose."""
        args = rpc.ListSecretsArgs(1, as_flags(flags))
        handle = self._open("virConnectListAllSecrets", _DOMAIN)
        found = handle.call(rpc.LIST_ALL_SECRETS, args)
        return [self._secret(each, handle) for each in found.secrets]

    def secretLookupByUUID(self, uuid: bytes) -> virSecret:  # noqa: N802
        """Return the secret with this uuid of 16 bytes."""
        function = "virSecretLookupByUUID"
        raw = uuid_bytes(uuid)
        handle = self._open(function, _DOMAIN)
        if raw is None:
            refuse_argument(function, "uuid", "must be 16 bytes", _DOMAIN)
        found = handle.call(rpc.LOOKUP_BY_UUID, storage.Uuid(raw))
        return self._secret(found.secret, handle)

    def secretLookupByUUIDString(self, uuidstr: str) -> virSecret:  # noqa: N802
        """Return the secret with this uuid."""
        function = "virSecretLookupByUUIDString"
        given = text(uuidstr, function, 2)
        handle = self._open(function, _DOMAIN)
        if given is None:
            refuse_argument(function, "uuidstr", _NO_NULL, _DOMAIN)
        raw = parse_uuid(given)
        if raw is None:
            refuse_argument(function, "uuidstr", "must be a valid UUID", _DOMAIN)
        found = handle.call(rpc.LOOKUP_BY_UUID, storage.Uuid(raw), function)
        return self._secret(found.secret, handle)

    def secretLookupByUsage(self, usageType: int, usageID: str) -> virSecret:  # noqa: N802, N803
        """Return the secret for a thing of the kind that one of ``VIR_SECRET_USAGE_TYPE_*`` is."""
        function = "virSecretLookupByUsage"
        kind, thing = number(usageType), text(usageID, function, 3)
        handle = self._open(function, _DOMAIN)
        if thing is None:
            refuse_argument(function, "usageID", _NO_NULL, _DOMAIN)
        found = handle.call(rpc.LOOKUP_BY_USAGE, rpc.UsageArgs(kind, thing))
        return self._secret(found.secret, handle)

    def secretDefineXML(self, xml: str, flags: int = 0) -> virSecret:  # noqa: N802
        """Define a secret, or change the definition of one; its value stays."""
        function = "virSecretDefineXML"
        found, bits = text(xml, function, 2), as_flags(flags)
        handle = self._open(function, _DOMAIN)
        handle.check_writable(function, _DOMAIN)
        if found is None:
            refuse_argument(function, "xml", _NO_NULL, _DOMAIN)
        made = handle.call(rpc.DEFINE_XML, storage.XMLArgs(found, bits))
        return self._secret(made.secret, handle)

    def secretEventRegisterAny(  # noqa: N802
        self,
        secret: virSecret | None,
        eventID: int,  # noqa: N803
        cb: Callable[..., Any],
        opaque: Any,
    ) -> int:
        """Have *cb* called with the events of one secret, or of all; return what ends that.

        ``cb(conn, secret, event, detail, opaque)`` for ``VIR_SECRET_EVENT_ID_LIFECYCLE``,
        ``cb(conn, secret, opaque)`` for ``VIR_SECRET_EVENT_ID_VALUE_CHANGED``.
        """
        function = "virConnectSecretEventRegisterAny"
        event = number(eventID)
        handle = self._open(function, _DOMAIN)
        if secret is not None and secret._handle is not handle:
            refuse_foreign(f"secret '{secret.UUIDString()}'", "secret", function, _DOMAIN)
        about = None if secret is None else secret._record
        conn = cast("virConnect", self)
        return self._registrations.add(conn, SECRETS, event, about, cb, opaque)

    def secretEventDeregisterAny(self, callbackID: int) -> None:  # noqa: N802, N803
        """End what `secretEventRegisterAny` began."""
        local = number(callbackID)
        self._open("virConnectSecretEventDeregisterAny", _DOMAIN)
        self._registrations.remove(SECRETS, local)

    def _secret(self, found: rpc.Secret, handle: Handle) -> virSecret:
        return virSecret(cast("virConnect", self), found, handle)
