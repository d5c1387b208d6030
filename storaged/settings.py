"""What libvirt has no place for: per pool, owner, group, mode and place of new volumes.

One small TOML file a pool, below ``etc/storaged``; without it everything is as with libvirt. People
may edit the files: keys that this version does not know are kept (comments are not), and a file
that it cannot understand is reported, not obeyed and never rewritten.

Source: TOML 1.0 for the file's syntax.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from storaged.atomic import make_directory, read_file, remove_file, write_file
from storaged.errors import ConfigUnsupported, InternalError, InvalidArgument, StorageError
from storaged.paths import Paths, printable

#: The most bytes that a file may have.
_LIMIT = 1 << 20

#: The largest user or group id; the one above it means "unchanged" to the kernel.
_MAX_ID = 2**32 - 2

_OWNER, _GROUP, _MODE = "volume-owner", "volume-group", "volume-mode"
_THIN_POOL = "thin-pool"
_NUMBERS = (_OWNER, _GROUP, _MODE)
_KNOWN = (*_NUMBERS, _THIN_POOL)

_HEAD = """\
# Defaults for new volumes of this pool, read by storaged; removing this file leaves libvirt's.
"""


@dataclass(frozen=True, slots=True)
class PoolPolicy:
    """What new volumes of a pool get where their definition names nothing; None is libvirt's way.

    :param thin_pool: the thin pool that the sparse volumes of a logical pool lie in.
    :raise InvalidArgument: an id or a mode that the kernel does not have.
    """

    owner: int | None = None
    group: int | None = None
    mode: int | None = None
    thin_pool: str | None = None

    def __post_init__(self) -> None:
        for what, value, most in (
            ("owner", self.owner, _MAX_ID),
            ("group", self.group, _MAX_ID),
            ("mode", self.mode, 0o777),
        ):
            if value is not None and not 0 <= value <= most:
                shown = f"{value:#o}" if what == "mode" else value
                raise InvalidArgument(f"{what} of new volumes out of range: {shown}")
        if self.thin_pool is not None and (not self.thin_pool or "/" in self.thin_pool):
            raise InvalidArgument(f"'{self.thin_pool}' is no name of a thin pool")


class PolicyStore:
    """The policies of all pools of one engine.

    :param readonly: calls that would change a file are refused.
    """

    def __init__(self, paths: Paths, *, readonly: bool = False) -> None:
        self._paths = paths
        self._readonly = readonly

    def load(self, name: str) -> PoolPolicy:
        """Return the policy of a pool: the default one also where its file cannot be used."""
        try:
            return _policy(self._read(name))
        except StorageError:
            return PoolPolicy()

    def require(self, name: str) -> PoolPolicy:
        """Return the policy of a pool, for what must not be made without it.

        :raise ConfigUnsupported: its file cannot be understood.
        :raise SystemFailure: it cannot be read.
        """
        try:
            return _policy(self._read(name))
        except ConfigUnsupported as err:
            err.advice = f"Mend or remove '{printable(self._paths.policy_file(name))}'."
            raise

    def problems(self, name: str) -> tuple[str, ...]:
        """Return what is wrong with a pool's file, for people; each names the path."""
        try:
            table = self._read(name)
            _policy(table)
        except StorageError as err:
            return (self._located(name, err.detail),)
        return tuple(
            self._located(name, f"unknown key '{key}' is kept and has no effect")
            for key in table
            if key not in _KNOWN
        )

    def save(self, name: str, policy: PoolPolicy) -> None:
        """Keep the policy of a pool, beside all that its file says otherwise.

        A file that would say nothing is removed.

        :raise ConfigUnsupported: the file that is there cannot be understood; it stays as it is.
        :raise SystemFailure: it cannot be read or written; it stays as it is.
        """
        self._require_writable()
        path = self._paths.policy_file(name)
        try:
            table = self._read(name)
            _policy(table)
        except ConfigUnsupported as err:
            err.advice = f"Mend or remove '{printable(path)}' first."
            raise
        values = (policy.owner, policy.group, policy.mode, policy.thin_pool)
        for key, value in zip(_KNOWN, values, strict=True):
            table.pop(key, None)
            if value is not None:
                table[key] = value
        if table:
            make_directory(path.parent, durable=True)
            write_file(path, format_policy(table).encode(), durable=True)
        else:
            remove_file(path, durable=True)

    def remove(self, name: str) -> None:
        """Forget the policy of a pool, whatever its file holds.

        :raise SystemFailure: it is still there.
        """
        self._require_writable()
        remove_file(self._paths.policy_file(name), durable=True)

    def _read(self, name: str) -> dict[str, object]:
        data = read_file(self._paths.policy_file(name), _LIMIT)
        if data is None:
            return {}
        import tomllib  # most pools have no such file

        try:
            return tomllib.loads(data.decode())
        except (ValueError, RecursionError) as err:  # also bytes that are not UTF-8
            raise ConfigUnsupported(self._located(name, f"not TOML: {err}")) from err

    def _located(self, name: str, text: str) -> str:
        shown = printable(self._paths.policy_file(name))
        return text if shown in text else f"{shown}: {text}"

    def _require_writable(self) -> None:
        if self._readonly:
            raise InternalError("the engine was opened read-only")


def _policy(table: Mapping[str, object]) -> PoolPolicy:
    """Return the policy in a file's table.

    :raise ConfigUnsupported: a key of ours has a value that makes no sense.
    """
    numbers: list[int | None] = []
    for key in _NUMBERS:
        value = table.get(key)
        if value is not None and type(value) is not int:
            raise ConfigUnsupported(f"'{key}' must be a number, not {format_value(value)}")
        numbers.append(value)
    thin_pool = table.get(_THIN_POOL)
    if thin_pool is not None and not isinstance(thin_pool, str):
        raise ConfigUnsupported(f"'{_THIN_POOL}' must be a name, not {format_value(thin_pool)}")
    try:
        owner, group, mode = numbers
        return PoolPolicy(owner, group, mode, thin_pool)
    except InvalidArgument as err:
        raise ConfigUnsupported(err.detail) from err


def format_policy(table: Mapping[str, object]) -> str:
    """Return a file's text; reading it gives *table* again."""
    lines = [
        f"{_key(key)} = {f'{value:#o}' if key == _MODE else format_value(value)}\n"
        for key, value in table.items()
    ]
    return _HEAD + "".join(lines)


def format_value(value: object) -> str:
    """Return anything that TOML can hold as TOML, in one line."""
    from datetime import date, time

    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return _string(value)
        case date() | time():  # a datetime is a date
            return value.isoformat()
        case list():
            return f"[{', '.join(map(format_value, value))}]"
        case dict():
            inner = ", ".join(f"{_key(key)} = {format_value(item)}" for key, item in value.items())
            return f"{{ {inner} }}" if inner else "{}"
    raise AssertionError(f"TOML has no {type(value).__name__}")


def _key(key: str) -> str:
    bare = key and all(char.isascii() and (char.isalnum() or char in "-_") for char in key)
    return key if bare else _string(key)


def _string(value: str) -> str:
    # JSON's escapes are TOML's, but TOML wants one more character escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
