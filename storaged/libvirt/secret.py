"""Secrets under libvirt-python's names."""

from __future__ import annotations

from storaged.errors import Domain
from storaged.libvirt import errorconstants as numbers
from storaged.libvirt.arguments import data, format_uuid
from storaged.libvirt.arguments import flags as as_flags
from storaged.libvirt.errors import fail, refuse_argument
from storaged.libvirt.held import Held
from storaged.rpc import secret
from storaged.rpc.remoteerror import RemoteError


class virSecret(Held[secret.Secret]):  # noqa: N801 -- libvirt-python's name
    """A secret; made by the methods of `virConnect`."""

    _counted = "virSecretRef"
    _makers = "secrets are made by the methods of a connection"

    def UUID(self) -> bytes:  # noqa: N802
        """Return the uuid as 16 bytes."""
        return self._record.uuid

    def UUIDString(self) -> str:  # noqa: N802
        """Return the uuid as text."""
        return format_uuid(self._record.uuid)

    def usageType(self) -> int:  # noqa: N802
        """Return one of ``VIR_SECRET_USAGE_TYPE_*``: what kind of thing the secret is for."""
        return self._record.usage_type

    def usageID(self) -> str:  # noqa: N802
        """Return which thing of that kind, such as the path of a volume."""
        return self._record.usage_id

    def XMLDesc(self, flags: int = 0) -> str:  # noqa: N802
        """Return the definition."""
        args = secret.SecretFlagsArgs(self._record, as_flags(flags))
        return self._handle.call(secret.GET_XML_DESC, args).xml

    def setValue(self, value: bytes | str, flags: int = 0) -> int:  # noqa: N802
        """Give the secret its value, of at most 65,536 bytes."""
        function = "virSecretSetValue"
        found, bits = data(value, function, 2), as_flags(flags)
        self._handle.check_writable(function, numbers.VIR_FROM_SECRET)
        if not found:
            refuse_argument(function, "value", "must not be NULL", numbers.VIR_FROM_SECRET)
        if len(found) > secret.VALUE_MAX:
            text = f"value length greater than maximum: {len(found)} > {secret.VALUE_MAX}"
            domain = int(Domain.REMOTE)
            fail(RemoteError(numbers.VIR_ERR_RPC, domain, text, str1="%s", str2=text), function)
        self._handle.call(secret.SET_VALUE, secret.SetValueArgs(self._record, found, bits))
        return 0

    def value(self, flags: int = 0) -> bytes:
        """Return the value; that of a private secret is told to nobody."""
        args = secret.SecretFlagsArgs(self._record, as_flags(flags))
        self._handle.check_writable("virSecretGetValue", numbers.VIR_FROM_SECRET)
        return self._handle.call(secret.GET_VALUE, args).value

    def undefine(self) -> int:
        """Forget the secret and its value."""
        self._handle.check_writable("virSecretUndefine", numbers.VIR_FROM_SECRET)
        self._handle.call(secret.UNDEFINE, secret.SecretArgs(self._record))
        return 0
