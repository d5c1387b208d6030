"""The parameters of `virConnect.setIdentity`, from a dictionary to what stands on the wire.

Source: libvirt-python's behaviour, the texts of its refusals included.
"""

from __future__ import annotations

from typing import Any, Final

from storaged.libvirt import constants
from storaged.rpc.typedparam import ParamType, TypedParam, Value

_KINDS: Final = {
    constants.VIR_CONNECT_IDENTITY_USER_NAME: ParamType.STRING,
    constants.VIR_CONNECT_IDENTITY_UNIX_USER_ID: ParamType.ULLONG,
    constants.VIR_CONNECT_IDENTITY_GROUP_NAME: ParamType.STRING,
    constants.VIR_CONNECT_IDENTITY_UNIX_GROUP_ID: ParamType.ULLONG,
    constants.VIR_CONNECT_IDENTITY_PROCESS_ID: ParamType.LLONG,
    constants.VIR_CONNECT_IDENTITY_PROCESS_TIME: ParamType.ULLONG,
    constants.VIR_CONNECT_IDENTITY_SASL_USER_NAME: ParamType.STRING,
    constants.VIR_CONNECT_IDENTITY_X509_DISTINGUISHED_NAME: ParamType.STRING,
    constants.VIR_CONNECT_IDENTITY_SELINUX_CONTEXT: ParamType.STRING,
}


def identity_params(given: object) -> tuple[TypedParam, ...]:
    """Return the parameters that a dictionary holds; names and texts end at a NUL.

    A name that is not known is left for the other side to refuse.

    :raise TypeError: it is no dictionary, a name is no text, or a value has the wrong type.
    :raise OverflowError: a number does not fit.
    """
    if not isinstance(given, dict):
        raise TypeError("migration params must be a dictionary")  # what libvirt-python says
    return tuple(_param(name, value) for name, value in given.items())


def _param(name: object, value: object) -> TypedParam:
    field = _text(name)
    kind = _KINDS.get(field) or _guessed(field, value)
    return TypedParam(field, (kind, _converted(kind, value)))


def _guessed(field: str, value: object) -> ParamType:
    """Return the type that a value has by itself."""
    if isinstance(value, str):
        return ParamType.STRING
    if isinstance(value, bool):
        return ParamType.BOOLEAN
    if isinstance(value, int):
        return ParamType.LLONG if value < 0 else ParamType.ULLONG
    if isinstance(value, float):
        return ParamType.DOUBLE
    raise TypeError(f'Unknown type of "{field}" field')


def _converted(kind: ParamType, value: Any) -> Value:
    if kind is ParamType.STRING:
        return _text(value)
    if kind in (ParamType.LLONG, ParamType.ULLONG):
        return _number(value, signed=kind is ParamType.LLONG)
    found: Value = value
    return found


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("bad argument type for built-in operation")
    return value.partition("\0")[0]


def _number(value: object, *, signed: bool) -> int:
    """Return an integer that fits into 64 bits."""
    if not isinstance(value, int):
        raise TypeError("an integer is required")
    if value < 0 and not signed:
        raise OverflowError("can't convert negative int to unsigned")
    if value.bit_length() > 64 - signed and value != -(1 << 63):
        raise OverflowError("int too big to convert")
    return int(value)
