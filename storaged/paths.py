"""Where an engine keeps its files: the host's places, a user's, or everything below one root.

Libvirt's directories hold what libvirt knows, in its own files; what only storaged knows lies in
directories of its own, so that removing those leaves a plain libvirt host. Target paths of pools
are never re-rooted.

Sources: libvirt's behaviour for the system and for sessions, and the XDG base directory
specification.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from storaged.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Paths:
    """The directories of one engine, all absolute. None of them has to exist.

    :param config: definitions of the persistent pools, ``NAME.xml``.
    :param autostart: links to those that are to be started at boot.
    :param state: live definitions of the active pools, and the driver's lock.
    :param settings: what libvirt has no place for, such as the owner of new volumes.
    :param runtime: what only holds until the next boot and libvirt has no place for.
    :param sockets: where clients find a daemon.
    :param uri: how the engine is called towards clients.
    :param is_session: an ordinary user's engine.
    """

    config: Path
    autostart: Path
    state: Path
    settings: Path
    runtime: Path
    sockets: Path
    uri: str
    is_session: bool = False

    @classmethod
    def system(cls) -> Paths:
        """Return the places of the host's engine, which are libvirt's."""
        return cls._laid_out(Path("/"), "storage:///system")

    @classmethod
    def session(cls, environ: Mapping[str, str]) -> Paths:
        """Return the places of a user's engine, by the XDG variables of *environ*.

        A variable that is empty or relative counts as unset. Without ``XDG_RUNTIME_DIR`` the cache
        directory serves, as with libvirt; it outlives a boot.
        """
        config = _xdg(environ, "XDG_CONFIG_HOME", ".config")
        cache = _xdg(environ, "XDG_CACHE_HOME", ".cache")
        run = _absolute(environ.get("XDG_RUNTIME_DIR")) or cache
        return cls(
            config=config / "libvirt/storage",
            autostart=config / "libvirt/storage/autostart",
            state=run / "libvirt/storage/run",
            settings=config / "storaged",
            runtime=run / "storaged",
            sockets=run / "libvirt",
            uri="storage:///session",
            is_session=True,
        )

    @classmethod
    def below(cls, root: str | os.PathLike[str], *, session: bool = False) -> Paths:
        """Return places below *root*, laid out there as the host's are below ``/``.

        :param session: an ordinary user's engine; the root then stands in for the XDG directories.
        """
        from urllib.parse import quote  # costs more than all the rest of this file

        top = Path(os.path.abspath(root))  # noqa: PTH100 -- absolute() keeps ".."
        kind = "session" if session else "system"
        return cls._laid_out(top, f"storage:///{kind}?root={quote(os.fsencode(top))}", session)

    @classmethod
    def _laid_out(cls, top: Path, uri: str, session: bool = False) -> Paths:
        return cls(
            config=top / "etc/libvirt/storage",
            autostart=top / "etc/libvirt/storage/autostart",
            state=top / "run/libvirt/storage",
            settings=top / "etc/storaged",
            runtime=top / "run/storaged",
            sockets=top / "run/libvirt",
            uri=uri,
            is_session=session,
        )

    @property
    def public_mode(self) -> int:
        """The mode of libvirt's directories: a user's are for the user alone."""
        return 0o700 if self.is_session else 0o755

    def config_file(self, name: str) -> Path:
        """Return where the definition of a pool lies."""
        return self.config / _entry(name, ".xml")

    def autostart_link(self, name: str) -> Path:
        """Return where the link lies that has a pool started at boot."""
        return self.autostart / _entry(name, ".xml")

    def live_file(self, name: str) -> Path:
        """Return where the live definition of an active pool lies."""
        return self.state / _entry(name, ".xml")

    def policy_file(self, name: str) -> Path:
        """Return where the defaults for new volumes of a pool lie."""
        return self.settings.joinpath("pools", _entry(name, ".toml"))

    def anchor_file(self, uuid: UUID) -> Path:
        """Return where it is kept what identifies the target of an active pool."""
        return self.runtime / "anchors" / f"{uuid}.json"

    @property
    def unstarted(self) -> Path:
        """Where it is kept which pools are still to be started in this boot."""
        return self.runtime / "unstarted"

    @property
    def secrets(self) -> Path:
        """Libvirt's definitions and values of secrets: ``UUID.xml`` and ``UUID.base64``."""
        return self.config.parent / "secrets"

    @property
    def secrets_state(self) -> Path:
        """Where the lock of libvirt's secret driver lies."""
        below = self.state.relative_to(self.sockets)
        return self.sockets.joinpath("secrets", *below.parts[1:])

    @property
    def lock_file(self) -> Path:
        """Libvirt's lock of the storage driver."""
        return self.state / "driver.pid"

    @property
    def owner_file(self) -> Path:
        """What is said there of the engine that holds the driver's lock."""
        return self.runtime / "owner.json"

    @property
    def boot_file(self) -> Path:
        """The boot in which the state was last opened."""
        return self.runtime / "boot"

    @property
    def autostarted_file(self) -> Path:
        """Libvirt's mark that the pools were started in this boot."""
        return self.state / "autostarted"


def printable(path: str | os.PathLike[str]) -> str:
    r"""Return *path* for a message: bytes that are not UTF-8 stand there as ``\xNN``."""
    return os.fsencode(path).decode(errors="backslashreplace")


def require_program(setting: str, path: str) -> None:
    """Make sure that a setting is the absolute path of a program that this user can run.

    :raise InvalidArgument: it is not.
    """
    if not (path.startswith("/") and Path(path).is_file() and os.access(path, os.X_OK)):
        raise InvalidArgument(
            f"'{setting}' must be the absolute path of a program, which '{printable(path)}' is not"
        )


def _entry(name: str, suffix: str) -> str:
    """Return the file name for a pool.

    :raise InvalidArgument: the name could lead out of the directory.
    """
    if not name or "/" in name or "\0" in name:
        raise InvalidArgument(f"'{printable(name)}' cannot be the name of a pool")
    return name + suffix


def _xdg(environ: Mapping[str, str], variable: str, default: str) -> Path:
    return _absolute(environ.get(variable)) or _home(environ) / default


def _home(environ: Mapping[str, str]) -> Path:
    return _absolute(environ.get("HOME")) or Path(pwd.getpwuid(os.getuid()).pw_dir)


def _absolute(value: str | None) -> Path | None:
    return Path(value) if value and value.startswith("/") else None
