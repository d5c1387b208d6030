"""The options of the program, by libvirt's names."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass

from storaged.version import VERSION

_ABOUT = """\
Serve the storage pools of this host on libvirt's sockets, in place of libvirt's storage daemon:
virsh, virt-manager and all other clients of libvirt work unchanged.

Without options it runs in the foreground, for the host if root starts it and else for the user.
"""
_MORE = """\
examples:
  storaged                        serve the host; virsh -c storage:///system pool-list --all
  storaged --root /tmp/try        keep all files below a directory, to try it out
  storaged --session --timeout 120

SIGTERM ends it, SIGHUP reads the configuration and the pools' definitions again.
"""

#: More seconds than that are no time-out.
_LONGEST = 1 << 31


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for on the command line.

    :param ready_fd: where to say that the daemon serves: the descriptor to which a process that
        starts one in the background listens; None without one.
    """

    verbose: bool = False
    daemon: bool = False
    config: str | None = None
    timeout: int = 0
    pid_file: str | None = None
    root: str | None = None
    session: bool = False
    ready_fd: int | None = None


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Return the options; what is wrong with them ends the program with status 2.

    ``--help`` and ``--version`` print and end it with status 0.
    """
    found = _parser().parse_args(arguments)
    return Options(
        verbose=found.verbose,
        daemon=found.daemon,
        config=found.config,
        timeout=found.timeout,
        pid_file=found.pid_file,
        root=found.root,
        session=found.session or os.geteuid() != 0,
        ready_fd=found.ready_fd,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="storaged",
        description=_ABOUT,
        epilog=_MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-v", "--verbose", action="store_true", help="log informational messages too")
    add("-d", "--daemon", action="store_true", help="go to the background, once clients are served")
    add("-f", "--config", metavar="FILE", type=_path, help="read this configuration file")
    add(
        *("-t", "--timeout"),
        metavar="SECONDS",
        type=_seconds,
        default=0,
        help="end after so long without clients and jobs; 0, the default, is never",
    )
    add("-p", "--pid-file", metavar="FILE", type=_path, help="keep the process id in this file")
    add("-V", "--version", action="version", version=f"storaged {VERSION}")
    add(
        "--root",
        metavar="DIR",
        type=_path,
        help="keep configuration, state and sockets below DIR",
    )
    add(
        "--session", action="store_true", help="serve this user, not the host (default if not root)"
    )
    add("--ready-fd", type=int, help=argparse.SUPPRESS)
    return parser


def _seconds(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text[:12]) >= _LONGEST:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of seconds")
    return int(text)


def _path(text: str) -> str:
    """Return a path that still holds when the current directory has changed."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return os.path.abspath(text)  # noqa: PTH100 -- absolute() keeps ".."
