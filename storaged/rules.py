"""Checks of single values, with libvirt's texts: what constructors and parsers have in common.

Each function takes what was given and returns what is to be kept, or raises.

Source: libvirt's storage pool and volume XML formats; texts and bounds as libvirt 9.0 has them.
"""

from __future__ import annotations

import re
from uuid import UUID, uuid4

from storaged.errors import (
    ConfigUnsupported,
    Domain,
    InternalError,
    InvalidArgument,
    Overflow,
    XMLError,
    XMLSyntaxError,
)
from storaged.units import MAX_SIZE, parse_size

#: "unset" for owner and group, as the kernel's calls and libvirt have it
NO_ID = 0xFFFF_FFFF
#: the largest number in an unsigned 64-bit field
MAX_UNSIGNED = 2**64 - 1

_INTEGER = re.compile(r"[ \t\n\v\f\r]*[+-]?[0-9]+")
_NUMBER = re.compile(r"[ \t\n\v\f\r]*[+-]?(?:0[xX][0-9a-fA-F]+|[0-9]+)")
_OCTAL = re.compile(r"[ \t\n\v\f\r]*[+-]?[0-7]+")
_UUID = re.compile(r"\s*(?:[- ]*[0-9a-fA-F]{2}){16}\s*", re.ASCII)
_URI = re.compile(r"[A-Za-z0-9+.-]+://")
_WWN = re.compile(r"(?:0x)?[0-9a-fA-F]{16}")
_COMPAT = re.compile(r"[0-9]{1,9}\.[0-9]{1,9}")


def decimal(text: str) -> int | None:
    """Return a decimal integer, or None for what is none.

    White space may stand before the number, not behind it; a leading 0 does not make it octal.
    """
    return _whole(text, 10) if _INTEGER.fullmatch(text) else None


def octal(text: str) -> int | None:
    """Return an octal integer, or None for what is none."""
    return _whole(text, 8) if _OCTAL.fullmatch(text) else None


def number(text: str) -> int | None:
    """Return an integer as C programs spell it (``0x1f``, ``010``, ``8``), None for no integer."""
    if _NUMBER.fullmatch(text) is None:
        return None
    digits = text.strip().lstrip("+-")
    if digits[:2] in ("0x", "0X"):
        return _whole(text, 16)
    if digits[0] == "0" and len(digits) > 1:
        return _whole(text, 8)
    return _whole(text, 10)


def _whole(text: str, base: int) -> int | None:
    try:
        return int(text, base)
    except ValueError:  # more digits than Python converts, or an 8 in an octal number
        return None


def sanitise_path(path: str) -> str:
    """Return *path* without doubled slashes and without one at the end.

    Exactly two slashes at the start stay, what starts like ``scheme://`` stays as it is, and so do
    ``.``, ``..`` and symbolic links: nothing is looked up.
    """
    if _URI.match(path):
        return path
    doubled = path.startswith("//") and not path.startswith("///")
    plain = path
    while "//" in plain:  # not an expression: for the longest path of a peer it takes half a second
        plain = plain.replace("//", "/")
    if len(plain) > 1:
        plain = plain.removesuffix("/")
    return "/" + plain if doubled else plain


def parse_uuid(value: UUID | str | None) -> UUID | None:
    """Return the UUID that *value* spells, None for None and for empty text.

    Text has 32 hexadecimal digits; hyphens and spaces may stand between pairs.

    :raise ValueError: it is no UUID.
    """
    if value is None or isinstance(value, UUID):
        return value
    if not value:
        return None
    if not isinstance(value, str) or _UUID.fullmatch(value) is None:
        raise ValueError(value)
    return UUID(re.sub(r"[\s-]", "", value))


def pool_uuid(value: UUID | str | None) -> UUID:
    """Return the UUID of a pool; a random one if none is given.

    :raise XMLError: "malformed uuid element".
    """
    try:
        return parse_uuid(value) or uuid4()
    except ValueError:
        raise XMLError("malformed uuid element", element="uuid") from None


def secret_uuid(value: UUID | str) -> UUID:
    """Return the UUID of a secret.

    :raise XMLError: it is no UUID; empty text is none.
    """
    try:
        found = parse_uuid(value)
    except ValueError:
        found = None
    if found is None:
        raise XMLError(f"invalid secret uuid '{value}'", element="secret")
    return found


def pool_name(name: str) -> str:
    """Return the name of a pool.

    :raise XMLError: it is empty or holds a slash.
    :raise XMLSyntaxError: it holds a NUL.
    """
    if not name:
        raise XMLError("missing pool source name element", element="name")
    if "/" in name:
        raise XMLError(
            f"name {name} cannot contain '/'",
            element="name",
            advice="A pool's name is no path; use --target for a path.",
        )
    if "\0" in name:
        raise XMLSyntaxError(f"invalid char in name: {name}", element="name")
    return name


def volume_name(name: str) -> str:
    """Return the name of a volume; whether a slash may stand in it is the backend's to say.

    :raise XMLError: it is empty.
    :raise XMLSyntaxError: it holds a NUL.
    """
    if not name:
        raise XMLError("missing volume name element", element="name")
    if "\0" in name:
        raise XMLSyntaxError(f"invalid char in name: {name}", element="name")
    return name


def file_mode(value: int | None) -> int | None:
    """Return the permission bits of a target.

    :raise XMLError: outside 0 to 0777.
    """
    if value is not None and not 0 <= value <= 0o777:
        raise XMLError("malformed octal mode", element="target/permissions/mode")
    return value


def account(value: int | None, element: str) -> int | None:
    """Return a user's or a group's number; -1 and 4294967295 are "unset".

    :param element: ``owner`` or ``group``.
    :raise XMLError: outside -1 to 4294967295.
    """
    if value is None or value in (-1, NO_ID):
        return None
    if not 0 <= value < NO_ID:
        raise XMLError(f"malformed {element} element", element=f"target/permissions/{element}")
    return value


def wwn(value: str) -> None:
    """Check a world wide name: 16 hexadecimal digits, ``0x`` before them or not.

    :raise InternalError: as libvirt reports it.
    """
    if _WWN.fullmatch(value) is None:
        raise InternalError(
            f"Malformed wwn: {value}",
            advice="A WWN has 16 hexadecimal digits, such as 20000000c9831b4b.",
        )


def refresh_allocation(value: str | None) -> str | None:
    """Return how a refresh counts allocation: "default", "capacity" or None.

    :raise ConfigUnsupported: for every other word.
    """
    if value and value not in ("default", "capacity"):
        raise ConfigUnsupported(
            f"unknown storage pool volume refresh allocation type {value}",
            advice="Known are: default, capacity.",
        )
    return value or None


def compat(value: str | None) -> str | None:
    """Return the compatibility level of a qcow2 image, such as ``1.1``.

    :raise XMLError: it is not two decimal numbers with a point between.
    """
    if value and _COMPAT.fullmatch(value) is None:
        raise XMLError("forbidden characters in 'compat' attribute", element="target/compat")
    return value or None


def size(value: int | str, limit: int = MAX_SIZE) -> int:
    """Return a size in bytes; text is read as people write it ("20 GiB").

    :raise InvalidArgument: negative, or no size.
    :raise Overflow: above *limit*.
    """
    if isinstance(value, str):
        return parse_size(value)
    if value < 0:
        raise InvalidArgument(f"size must not be negative: {value}")
    if value > limit:
        raise Overflow(f"value too large: {value}")
    return value


def one_of(value: str, known: tuple[str, ...], attribute: str, element: str) -> str:
    """Return the value of an attribute that must be one of *known* words.

    :raise XMLError: it is none of them.
    """
    if value not in known:
        raise bad_value(value, attribute, element)
    return value


def bad_value(value: str, attribute: str, element: str, wanted: str = "") -> XMLError:
    """Return the error for an attribute that holds what it may not.

    :param wanted: what would have been right, such as ``Expected integer value``.
    """
    return XMLError(
        f"Invalid value for attribute '{attribute}' in element '{element}': '{value}'."
        + (f" {wanted}" if wanted else ""),
        element=element,
        domain=Domain.XML,
    )
