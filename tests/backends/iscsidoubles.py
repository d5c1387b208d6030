"""An iscsiadm and sessions that do what a test wants, where the kernel has no iSCSI.

Its records are in the real database, where other engines of this host see them too.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from storaged.backends import _iscsiface, _iscsiloan, _iscsilogin, _iscsisession, iscsi
from storaged.backends._iscsiportal import PORT

NODES = Path("/etc/iscsi/nodes")
#: The modules that ask for sessions, and for the name of this host.
ASKING = (_iscsiface, _iscsiloan, _iscsilogin, iscsi)
#: The number of the session that a login makes.
NUMBER = 7

_SCRIPT = """#!/bin/sh
cd {place}
echo "$$ $*" >> calls
case "$*" in
*"--op new"*) . ./new ;;
*--login*) . ./login ;;
*--logout*) rm sysfs/class/iscsi_session/session$4 ;;
*"--mode discovery"*) . ./discovery ;;
esac
"""


class San:
    """A target that is not there.

    :param place: a directory of its own.
    """

    def __init__(self, place: Path, target: str, port: int) -> None:
        self.place = place
        self.target = target
        self.port = port
        self.sysfs = place / "sysfs"
        self._class = self.sysfs / "class/iscsi_session"
        make_session(self.sysfs, NUMBER, target, portal="127.0.0.1", port=port)
        self._entry = (self._class / f"session{NUMBER}").readlink()
        self.end_session()
        self.bin = place / "bin"
        self.bin.mkdir()
        program = self.bin / "iscsiadm"
        program.write_text(_SCRIPT.format(place=place))
        program.chmod(0o755)
        self.on("new", self.makes)
        self.on("login", self.comes)
        self.on("discovery", "exit 21")

    @property
    def makes(self) -> str:
        """What makes the record, in the words of the shell."""
        place = NODES / self.target / f"127.0.0.1,{self.port},1"
        return f"umask 77; mkdir -p {place}; echo '# BEGIN RECORD 2.1.8' > {place}/default"

    @property
    def comes(self) -> str:
        """What makes the session, in the words of the shell."""
        return f"ln -s {self._entry} {self._class}/session{NUMBER}"

    def on(self, what: str, *lines: str) -> None:
        """Say what iscsiadm does at a ``new``, ``login`` or ``discovery``, as the shell does it."""
        (self.place / what).write_text("\n".join([*lines, ""]))

    def calls(self, word: str = "") -> list[str]:
        """Return each call of iscsiadm with *word*: its process, and its arguments."""
        file = self.place / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line for line in lines if word in line]

    def has_session(self) -> bool:
        return (self._class / f"session{NUMBER}").exists()

    def end_session(self) -> None:
        (self._class / f"session{NUMBER}").unlink(missing_ok=True)

    def records(self) -> list[Path]:
        """Return the records of the target in the database."""
        return [path for path in (NODES / self.target).glob("*/*") if path.is_file()]


def play(sysfs: str) -> None:
    """Have this process take sessions from *sysfs*; in a test the fixture undoes that."""
    played = {
        "read_session": partial(_iscsisession.read_session, sysfs=sysfs),
        "read_sessions": partial(_iscsisession.read_sessions, sysfs=sysfs),
        "own_initiator": lambda: "iqn.2026-01.test:me",
    }
    for module in ASKING:
        for name in played.keys() & vars(module).keys():
            setattr(module, name, played[name])


def make_session(
    sysfs: Path,
    number: int,
    target: str,
    *,
    portal: str = "192.0.2.7",
    port: int = PORT,
    went: str | None = None,
    initiator: str = "iqn.2026-01.test:me",
    interface: str = "default",
) -> Path:
    """Make the part of sysfs that the kernel makes for a session; return its device's directory.

    :param went: the address that its connection really leads to.
    """
    device = sysfs / "devices/platform" / f"host{number}" / f"session{number}"
    connection = device / f"connection{number}:0/iscsi_connection/connection{number}:0"
    connection.mkdir(parents=True)
    for name, value in (
        ("persistent_address", portal),
        ("persistent_port", port),
        ("address", went or portal),
        ("port", port),
    ):
        (connection / name).write_text(f"{value}\n")
    entry = device / "iscsi_session" / f"session{number}"
    entry.mkdir(parents=True)
    for name, text in (
        ("targetname", target),
        ("initiatorname", initiator),
        ("ifacename", interface),
        ("state", "LOGGED_IN"),
    ):
        (entry / name).write_text(f"{text}\n")
    (entry / "device").symlink_to(device)
    klass = sysfs / "class/iscsi_session"
    klass.mkdir(parents=True, exist_ok=True)
    (klass / f"session{number}").symlink_to(entry)
    return device
