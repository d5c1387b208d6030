"""Where a daemon's own files are: its sockets, configuration, process id and log.

Source: libvirt's paths for the system's daemon and for a user's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from storaged.paths import Paths

#: How libvirt's storage daemon is called in the names of files; ours takes its place.
NAME = "virtstoraged"


@dataclass(frozen=True, slots=True)
class Places:
    """The files of one daemon, all absolute.

    :param paths: those of its engine.
    :param config: the configuration file.
    :param pid_file: holds the process id while the daemon runs.
    :param log: where the log goes if nothing says otherwise and there is no terminal.
    :param sockets: the directory of the sockets.
    """

    paths: Paths
    config: Path
    pid_file: Path
    log: Path
    sockets: Path

    @property
    def rw(self) -> Path:
        """The socket of clients that may change things."""
        return self.sockets / f"{NAME}-sock"

    @property
    def ro(self) -> Path | None:
        """The socket of clients that only read; a user's daemon has none."""
        return None if self.paths.is_session else self.sockets / f"{NAME}-sock-ro"

    @property
    def admin(self) -> Path:
        """The socket of the daemon's own administration."""
        return self.sockets / f"{NAME}-admin-sock"

    @property
    def token(self) -> Path:
        """The secret that the daemons of this user share."""
        return self.paths.sockets / "common/system.token"


def places(*, root: str | None, session: bool, environ: Mapping[str, str]) -> Places:
    """Return where the files of a daemon are.

    :param root: everything below this directory, laid out as the host's is below ``/``.
    :param session: a user's daemon.
    """
    if root is None and session:
        paths = Paths.session(environ)
        run = paths.sockets.parent  # XDG_RUNTIME_DIR, or what stands in for it
        cache = _cache(environ, run)
        return Places(
            paths,
            config=paths.config.parent / f"{NAME}.conf",
            pid_file=paths.sockets / f"{NAME}.pid",
            log=cache / f"libvirt/log/{NAME}.log",
            sockets=paths.sockets,
        )
    paths = Paths.system() if root is None else Paths.below(root, session=session)
    top = paths.config.parents[2]  # what etc/libvirt/storage lies in
    return Places(
        paths,
        config=top / f"etc/libvirt/{NAME}.conf",
        pid_file=top / f"run/{NAME}.pid",
        log=top / f"var/log/libvirt/{NAME}.log",
        sockets=paths.sockets,
    )


def _cache(environ: Mapping[str, str], run: Path) -> Path:
    for name, below in (("XDG_CACHE_HOME", ""), ("HOME", ".cache")):
        value = environ.get(name, "")
        if os.path.isabs(value):  # noqa: PTH117 -- a Path of "" would be "."
            return Path(value) / below
    return run
