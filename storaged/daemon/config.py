"""What the administrator decides: libvirt's settings of a storage daemon, typed, with its defaults.

A setting that would make the daemon safer than it can be stops the start: a host that was locked
down for libvirt is never served with the lock left off.

Sources: libvirt's names and defaults of ``virtstoraged.conf``, version 9.0.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from storaged.daemon.configfile import ConfigError, Setting, parse
from storaged.errors import InvalidArgument, system_errors
from storaged.paths import printable, require_program
from storaged.server.limits import ServerLimits


class Auth(StrEnum):
    """How clients of a socket prove who they are."""

    NONE = "none"
    SASL = "sasl"
    POLKIT = "polkit"


@dataclass(frozen=True, slots=True)
class Settings:
    """The configuration of one daemon. None is "not set", where the default depends on the host.

    Modes of sockets are numbers; times are in seconds.

    :param lines: where each key was set, for messages.
    """

    unix_sock_group: str | None = None
    unix_sock_ro_perms: int = 0o777
    unix_sock_rw_perms: int | None = None
    unix_sock_admin_perms: int = 0o700
    unix_sock_dir: str | None = None
    auth_unix_ro: Auth | None = None
    auth_unix_rw: Auth | None = None
    max_clients: int = 5000
    max_queued_clients: int = 1000
    max_anonymous_clients: int = 20
    min_workers: int = 5
    max_workers: int = 20
    prio_workers: int = 5
    max_client_requests: int = 5
    admin_min_workers: int = 5
    admin_max_workers: int = 20
    admin_max_clients: int = 5000
    admin_max_queued_clients: int = 20
    admin_max_client_requests: int = 5
    log_level: int = 3
    log_filters: str = ""
    log_outputs: str = ""
    protect_backing: int = 0
    rbd_python: str | None = None
    keepalive_interval: int = 5
    keepalive_count: int = 5
    admin_keepalive_interval: int = 5
    admin_keepalive_count: int = 5
    file: str = ""
    lines: dict[str, int] = field(default_factory=dict, compare=False)

    def where(self, key: str) -> str:
        """Return where *key* was set, as the beginning of a message."""
        line = self.lines.get(key)
        return f"{self.file}: line {line}: " if line is not None else ""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration, and what in it means nothing to this daemon."""

    settings: Settings
    warnings: tuple[str, ...] = ()


#: Whole numbers and the least that each may be.
_NUMBERS = {
    "max_clients": 1,
    "max_queued_clients": 1,
    "max_anonymous_clients": 0,
    "min_workers": 0,
    "max_workers": 1,
    "prio_workers": 0,
    "max_client_requests": 1,
    "admin_min_workers": 0,
    "admin_max_workers": 1,
    "admin_max_clients": 1,
    "admin_max_queued_clients": 1,
    "admin_max_client_requests": 1,
    "log_level": 1,
    "protect_backing": 0,
    "keepalive_interval": -1,
    "keepalive_count": 0,
    "admin_keepalive_interval": -1,
    "admin_keepalive_count": 0,
}
_NUMBER_LIMIT = (1 << 31) - 1
_STRINGS = ("unix_sock_group", "unix_sock_dir", "log_filters", "log_outputs", "rbd_python")
_MODES = ("unix_sock_ro_perms", "unix_sock_rw_perms", "unix_sock_admin_perms")
_AUTHS = ("auth_unix_ro", "auth_unix_rw")

#: What libvirt's daemons know and a storage daemon has no use for: the type alone is looked at.
_UNUSED: dict[str, type] = {"host_uuid": str, "host_uuid_source": str, "ovs_timeout": int}

#: What only counts where it asks for something; the values that ask for nothing, and the reason.
_REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "access_drivers": (((),), "storaged has no access control by driver"),
    "sasl_allowed_username_list": ((), "storaged does not offer SASL"),
    "audit_level": ((0, 1), "storaged writes no audit records"),
    "audit_logging": ((0,), "storaged writes no audit records"),
    "listen_tls": ((0,), "storaged listens on UNIX sockets only"),
    "listen_tcp": ((0,), "storaged listens on UNIX sockets only"),
}
_REMOTE_KEYS = (
    *("listen_addr", "tls_port", "tcp_port", "auth_tcp", "auth_tls", "tcp_min_ssf"),
    *("key_file", "cert_file", "ca_file", "crl_file", "tls_no_verify_certificate"),
    *("tls_no_sanity_certificate", "tls_allowed_dn_list", "tls_priority"),
)


def load(path: Path, *, required: bool) -> Loaded:
    """Read a configuration file.

    :param required: a file that is not there is an error; else the defaults hold.
    :raise ConfigError: it is wrong, or asks for protection that this daemon cannot give.
    :raise SystemFailure: it cannot be read.
    """
    shown = printable(path)
    with system_errors(f"cannot read configuration file '{shown}'"):
        try:
            text = path.read_text(encoding="utf-8", errors="surrogateescape")
        except FileNotFoundError:
            if required:
                raise
            return Loaded(Settings())
    return read(text, shown)


def read(text: str, name: str) -> Loaded:
    """Return the settings of a configuration's *text*; *name* is the file's, for messages."""
    values: dict[str, object] = {}
    warnings: list[str] = []
    settings = parse(text, name)
    for setting in settings.values():
        try:
            if setting.key in _KNOWN:
                values[setting.key] = _value(setting)
            elif not _is_unused(setting):
                warnings.append(f"{name}: line {setting.line}: unknown setting '{setting.key}'")
        except (ValueError, InvalidArgument) as err:
            why = err.detail if isinstance(err, InvalidArgument) else err
            raise ConfigError(f"{name}: line {setting.line}: {why}") from err
    lines = {setting.key: setting.line for setting in settings.values()}
    loaded = dataclasses.replace(
        Settings(file=name, lines=lines),
        **values,  # type: ignore[arg-type]
    )
    return Loaded(_agreeing(loaded), tuple(warnings))


def limits(settings: Settings, *, admin: bool = False) -> ServerLimits:
    """Return the limits of a server as the configuration sets them."""
    prefix = "admin_" if admin else ""

    def of(key: str) -> int:
        found: int = getattr(settings, prefix + key)
        return found

    return ServerLimits(
        max_clients=of("max_clients"),
        max_queued_clients=of("max_queued_clients"),
        # The administration asks nobody to prove who he is, and has no calls that end soon alone.
        max_anonymous_clients=0 if admin else settings.max_anonymous_clients,
        min_workers=of("min_workers"),
        max_workers=of("max_workers"),
        prio_workers=0 if admin else settings.prio_workers,
        max_client_requests=of("max_client_requests"),
        keepalive_interval=of("keepalive_interval"),
        keepalive_count=of("keepalive_count"),
    )


_KNOWN = frozenset((*_NUMBERS, *_STRINGS, *_MODES, *_AUTHS))


def _value(setting: Setting) -> object:
    key, value = setting.key, setting.value
    if key in _NUMBERS:
        return _number(key, value)
    if not isinstance(value, str):
        raise ValueError(f"'{key}' must be a string in quotes")
    if key in _MODES:
        return _mode(key, value)
    if key in _AUTHS:
        return _auth(key, value)
    if "\0" in value:
        raise ValueError(f"'{key}' holds a character that cannot stand there")
    if key == "unix_sock_dir" and not value.startswith("/"):
        raise ValueError(f"'{key}' must be an absolute path")
    if key == "rbd_python" and value:
        require_program(key, value)
    return value or None if key not in ("log_filters", "log_outputs") else value


def _number(key: str, value: object) -> int:
    if not isinstance(value, int):
        raise ValueError(f"'{key}' must be a number")
    least = _NUMBERS[key]
    if not least <= value <= _NUMBER_LIMIT:
        raise ValueError(f"'{key}' must be at least {least} and at most {_NUMBER_LIMIT}")
    if key == "protect_backing" and value > 1:
        raise ValueError("'protect_backing' must be 0 or 1")
    if key == "log_level" and value > 4:
        raise ValueError("'log_level' must be 1 (debug), 2 (info), 3 (warning) or 4 (error)")
    return value


def _mode(key: str, value: str) -> int:
    digits = value.removeprefix("0o") or "-"
    if not set(digits) <= set("01234567") or int(digits, 8) > 0o777:
        raise ValueError(f"'{key}' must be a mode in octal digits, such as \"0770\"")
    return int(digits, 8)


def _auth(key: str, value: str) -> Auth:
    try:
        auth = Auth(value)
    except ValueError:
        raise ValueError(f"'{key}' must be \"none\" or \"polkit\", not '{value}'") from None
    if auth is Auth.SASL:
        raise ValueError(
            f"'{key}' asks for SASL, which storaged does not offer; "
            'set it to "polkit", or to "none" together with unix_sock_group and its permissions'
        )
    return auth


def _is_unused(setting: Setting) -> bool:
    """Tell whether libvirt knows the setting and it changes nothing here.

    :raise ValueError: it asks for what cannot be honoured.
    """
    key, value = setting.key, setting.value
    if key in _UNUSED:
        if not isinstance(value, _UNUSED[key]):
            kind = "a number" if _UNUSED[key] is int else "a string in quotes"
            raise ValueError(f"'{key}' must be {kind}")
        return True
    if key in _REFUSED:
        harmless, why = _REFUSED[key]
        if value not in harmless:
            raise ValueError(f"'{key}' cannot be honoured: {why}; remove it")
        return True
    if key in _REMOTE_KEYS:
        raise ValueError(
            f"'{key}' cannot be honoured: storaged listens on UNIX sockets only; remove it"
        )
    return False


def _agreeing(settings: Settings) -> Settings:
    """Have a default give way to what was said; two settings that disagree are an error."""
    for prefix in ("", "admin_"):
        least, most = f"{prefix}min_workers", f"{prefix}max_workers"
        if getattr(settings, least) <= getattr(settings, most):
            continue
        if least in settings.lines and most in settings.lines:
            raise ConfigError(
                f"{settings.where(least)}'{least}' is {getattr(settings, least)}, "
                f"more than '{most}', which is {getattr(settings, most)}"
            )
        said, other = (least, most) if least in settings.lines else (most, least)
        settings = dataclasses.replace(settings, **{other: getattr(settings, said)})
    return settings
