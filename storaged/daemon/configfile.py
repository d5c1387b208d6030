"""The syntax of libvirt's configuration files: ``key = value``, one a line.

A value is an integer, a string in single, double or three double quotes (there are no escapes), or
a list of values in brackets, which may run over several lines. ``#`` begins a comment.

Source: the format that libvirt's sample configurations describe and its daemons accept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from storaged.errors import StorageError

#: What may stand between two words of one line, and between two values of a list.
_BLANK = re.compile(r"[ \t]*")
_SPACE = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_NUMBER = re.compile(r"[+-]?[0-9]+(?![A-Za-z0-9_])")
_STRING = re.compile(r'"""(.*?)"""|"([^"\n]*)"|\'([^\'\n]*)\'', re.DOTALL)
_END = re.compile(r"[ \t]*(?:#[^\n]*)?(?:\r?\n|;|\Z)")

#: Numbers are 64 bits wide; more digits than that have no meaning.
_NUMBER_LIMIT = 1 << 63

Value = int | str | tuple[int | str, ...]


class ConfigError(StorageError):
    """A configuration that cannot be used; the text names the file and the line."""

    code = 27
    prefix = "configuration: %s"


@dataclass(frozen=True, slots=True)
class Setting:
    """One ``key = value`` and the line, counted from 1, on which the key stands."""

    key: str
    value: Value
    line: int


def parse(text: str, name: str) -> dict[str, Setting]:
    """Return what a configuration file sets, by key, in the order of the file.

    :param name: the file, for messages.
    :raise ConfigError: the text breaks the syntax, or sets a key twice.
    """
    return _Reader(text, name).settings()


class _Reader:
    """A text and how far it is read."""

    def __init__(self, text: str, name: str) -> None:
        self._text = text
        self._name = name
        self._at = 0

    def settings(self) -> dict[str, Setting]:
        found: dict[str, Setting] = {}
        self._skip(_SPACE)
        while self._at < len(self._text):
            setting = self._setting()
            first = found.get(setting.key)
            if first is not None:
                raise self._wrong(
                    f"'{setting.key}' is set already, in line {first.line}", setting.line
                )
            found[setting.key] = setting
            self._skip(_SPACE)
        return found

    def _setting(self) -> Setting:
        line = self._line()
        key = self._take(_NAME, "the name of a setting").group()
        self._skip(_BLANK)
        if not self._next("="):
            raise self._wrong(f"expected '=' after '{key}', found {self._found()}")
        self._skip(_BLANK)
        value: Value = self._items() if self._next("[") else self._plain(f"a value of '{key}'")
        if not (end := _END.match(self._text, self._at)):
            raise self._wrong(f"expected the end of the line, found {self._found()}")
        self._at = end.end()
        return Setting(key, value, line)

    def _items(self) -> tuple[int | str, ...]:
        """Return the values of a list whose opening bracket is read."""
        line = self._line()
        items: list[int | str] = []
        while True:
            self._skip(_SPACE)
            if self._next("]"):
                return tuple(items)
            if self._at >= len(self._text):
                raise self._wrong("the list that begins here has no ']'", line)
            items.append(self._plain("a value of the list"))
            self._skip(_SPACE)
            if not self._next(",") and self._text[self._at : self._at + 1] not in ("]", ""):
                raise self._wrong(f"expected ',' or ']', found {self._found()}")

    def _plain(self, wanted: str) -> int | str:
        if number := _NUMBER.match(self._text, self._at):
            self._at = number.end()
            # Python refuses to read very long numbers, with an error of its own.
            if len(number.group()) > 20 or abs(int(number.group())) >= _NUMBER_LIMIT:
                raise self._wrong(f"the number {number.group()[:20]} is too large")
            return int(number.group())
        if self._text.startswith(('"', "'"), self._at) and not _STRING.match(self._text, self._at):
            raise self._wrong("the string that begins here has no end")
        text = self._take(_STRING, f"{wanted}: a number, a string in quotes or a list in [ ]")
        return next(part for part in text.groups() if part is not None)

    def _take(self, pattern: re.Pattern[str], wanted: str) -> re.Match[str]:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise self._wrong(f"expected {wanted}, found {self._found()}")
        self._at = found.end()
        return found

    def _next(self, character: str) -> bool:
        if not self._text.startswith(character, self._at):
            return False
        self._at += 1
        return True

    def _skip(self, pattern: re.Pattern[str]) -> None:
        if found := pattern.match(self._text, self._at):
            self._at = found.end()

    def _found(self) -> str:
        rest = self._text[self._at : self._at + 30].partition("\n")[0].rstrip("\r")
        if rest:
            return f"{rest!r}"
        return "the end of the line" if self._at < len(self._text) else "the end of the file"

    def _line(self) -> int:
        return self._text.count("\n", 0, self._at) + 1

    def _wrong(self, detail: str, line: int | None = None) -> ConfigError:
        return ConfigError(f"{self._name}: line {line or self._line()}: {detail}")
