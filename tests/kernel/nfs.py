"""An NFS server on this machine; only the guest of `make test-vm` lends itself to that."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.kernel.programs import eventually, run

_EXPORTS = Path("/etc/exports")
_LOCKD = Path("/proc/sys/fs/nfs")
#: How long clients wait for locks after a start, in seconds: 50 if nobody says otherwise. And one
#: port for all starts: a client looks for another one only after a minute.
_LOCKD_SETTINGS = {"nlm_grace_period": "1", "nlm_tcpport": "32803", "nlm_udpport": "32803"}
_END_GRACE = Path("/proc/fs/nfsd/v4_end_grace")


class NfsServer:
    """The kernel's NFS server with rpcbind and mountd; exports by name and by `127.0.0.1`.

    Exported directories must lie on a real file system (`tmp_path` does in the guest).
    """

    def __init__(self) -> None:
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._exports: dict[str, str] = {}

    def start(self) -> None:
        """Start rpcbind, mountd and the kernel's server."""
        if not os.path.ismount("/proc/fs/nfsd"):
            run("mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd")
        Path("/var/lib/nfs/v4recovery").mkdir(parents=True, exist_ok=True)
        Path("/run/rpcbind").mkdir(exist_ok=True)
        _EXPORTS.write_text("")
        self._daemon("rpcbind", "-f", "-w")
        eventually(_answers("rpcinfo", "-p"), what="rpcbind")
        # mount would start one that outlives this rpcbind, and locks wait a minute for it then
        self._daemon("rpc.statd", "--foreground", "--no-notify")
        eventually(_answers("rpcinfo", "-T", "udp", "127.0.0.1", "status"), what="statd")
        self.resume()
        self._daemon("rpc.mountd", "--foreground")
        eventually(_answers("showmount", "-e", "127.0.0.1"), what="mountd")

    def export(
        self, directory: Path, options: str = "rw,no_root_squash", *, version4: bool = False
    ) -> str:
        """Export a directory; return the path to mount, for version 3.

        :param version4: for version 4 too, whose root it is then (only one can be): the path to
            mount is ``/``. The guest's own root is an overlay, which cannot be exported.
        """
        fsid = 0 if version4 else len(self._exports) + 1
        self._exports[str(directory)] = f"{options},insecure,no_subtree_check,fsid={fsid}"
        self._write()
        return "/" if version4 else str(directory)

    def unexport(self, directory: Path) -> None:
        """Take an export back: its clients get ESTALE."""
        del self._exports[str(directory)]
        self._write()

    def stop(self) -> None:
        """Let the server refuse to answer: soft mounts get errors, hard ones hang."""
        run("rpc.nfsd", "0")

    def resume(self) -> None:
        """Let it answer again, to new clients at once: nobody has locks of an earlier server."""
        for name, value in _LOCKD_SETTINGS.items():
            (_LOCKD / name).write_text(value)
        run("rpc.nfsd", "--grace-time", "10", "--lease-time", "10", "4")
        with suppress(OSError):  # busy if there is nothing to wait for
            _END_GRACE.write_text("Y")

    def close(self) -> None:
        """End all of it; call it when nothing is mounted any more."""
        self._exports.clear()
        self._write()
        self.stop()
        for daemon in reversed(self._daemons):
            daemon.terminate()
            daemon.wait(30)
        self._daemons.clear()

    def _daemon(self, *argv: str) -> None:
        self._daemons.append(
            subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )

    def _write(self) -> None:
        lines = (f"{path} *({options})\n" for path, options in self._exports.items())
        _EXPORTS.write_text("".join(lines))
        run("exportfs", "-r", "-a")


def _answers(*argv: str) -> Callable[[], bool]:
    def ask() -> bool:
        try:
            run(*argv, timeout=3)
        except (AssertionError, subprocess.TimeoutExpired):
            return False
        return True

    return ask
