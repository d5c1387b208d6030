"""The settings of libvirt's clients: the default URI and short names for URIs.

Source: libvirt's ``libvirt.conf``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from storaged.client.link import RemoteFailure
from storaged.errors import Domain, StorageError

_ALIAS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


class ConfigSyntax(StorageError):
    """A file of settings that cannot be read."""

    code = 33
    prefix = "configuration file syntax error: %s"


def is_root() -> bool:
    """Tell whether the system's daemons and settings are ours."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def config_path(environ: Mapping[str, str]) -> str:
    """Return where the settings of this user are."""
    if is_root():
        return "/etc/libvirt/libvirt.conf"
    base = environ.get("XDG_CONFIG_HOME") or f"{environ.get('HOME', '')}/.config"
    return f"{base}/libvirt/libvirt.conf"


class ClientConfig:
    """Settings of libvirt's clients.

    :param default: the URI of who names none.
    :param aliases: short names and their URIs, ``name=uri`` each.
    """

    __slots__ = ("_aliases", "default")

    def __init__(self, default: str | None = None, aliases: tuple[str, ...] = ()) -> None:
        self.default = default
        self._aliases = aliases

    def resolve(self, name: str) -> str:
        """Return the URI that *name* stands for, or *name* itself.

        :raise RemoteFailure: an entry in front of the one that fits is malformed (code 33).
        """
        for entry in self._aliases:
            alias, equals, uri = entry.partition("=")
            wrong = None
            if not equals:
                wrong = "expected 'alias=uri://host/path'"
            elif not _ALIAS.issuperset(alias):
                wrong = "aliases may only contain 'a-Z, 0-9, _, -'"
            if wrong:
                text = f"Malformed 'uri_aliases' config entry '{entry}', {wrong}"
                raise RemoteFailure.of(ConfigSyntax(text, domain=Domain.NONE))
            if alias == name:
                return uri
        return name


def read_config(path: str) -> ClientConfig:
    """Read a file of settings; one that is missing has none.

    :raise RemoteFailure: it cannot be understood (code 33).
    """
    from pathlib import Path  # takes longer to load than all of ours, and is rarely needed

    try:
        text = Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ClientConfig()
    default: str | None = None
    aliases: tuple[str, ...] = ()
    for line, name, values in _settings(text, path):
        if name == "uri_default":
            if not isinstance(values, str):
                raise _wrong(path, line, "expected a string for 'uri_default'")
            default = values
        elif name == "uri_aliases":
            if not isinstance(values, tuple):
                raise _wrong(path, line, "expected a list for 'uri_aliases'")
            aliases = values
    return ClientConfig(default, aliases)


def _settings(text: str, path: str) -> Iterator[tuple[int, str, str | tuple[str, ...]]]:
    """Yield line, name and value of each setting."""
    tokens = list(_tokens(text, path))
    at = 0
    while at < len(tokens):
        line, name = tokens[at]
        if tokens[at + 1 : at + 2] != [(line, "=")] or at + 2 >= len(tokens):
            raise _wrong(path, line, "expecting an assignment")
        at += 2
        if tokens[at][1] != "[":
            yield line, name, _value(tokens[at][1])
            at += 1
            continue
        values = []
        at += 1
        while at < len(tokens) and tokens[at][1] != "]":
            if tokens[at][1] != ",":
                values.append(_value(tokens[at][1]))
            at += 1
        if at == len(tokens):
            raise _wrong(path, line, "list is not closed with ]")
        at += 1
        yield line, name, tuple(values)


def _value(token: str) -> str:
    return token[1:-1] if token[:1] in "'\"" else token


def _tokens(text: str, path: str) -> Iterator[tuple[int, str]]:
    """Yield the words of a file with their lines; strings keep their quotation marks."""
    for number, line in enumerate(text.splitlines(), 1):
        at = 0
        while at < len(line):
            char = line[at]
            end = at + 1
            if char == "#":
                break
            if char in "'\"":
                end = line.find(char, at + 1) + 1
                if not end:
                    raise _wrong(path, number, "unterminated string")
            elif not char.isspace() and char not in "=[],":
                while end < len(line) and not line[end].isspace() and line[end] not in "=[],#":
                    end += 1
            if not char.isspace():
                yield number, line[at:end]
            at = end


def _wrong(path: str, line: int, what: str) -> RemoteFailure:
    return RemoteFailure.of(ConfigSyntax(f"{path}:{line}: {what}", domain=Domain.NONE))
