"""Secrets: virsh, libvirt's Python binding and bare packets are told the same by both daemons."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.clients import virsh, wire
from tests.clients.daemons import Daemons, Served
from tests.clients.differences import compare
from tests.clients.peers import Peers, open_peers, scenarios
from tests.clients.scenarios import secrets
from tests.clients.test_virsh import both
from tests.clients.wire import Connection
from tests.daemon.running import storaged_daemon
from tests.storaged.libvirtd import libvirtd

FIRST, SECOND, NOBODY = secrets.FIRST, secrets.SECOND, secrets.NOBODY

FILES = {
    "volume.xml": secrets.xml(FIRST, secrets.volume("/images/a")),
    "iscsi.xml": secrets.xml(
        SECOND, "<usage type='iscsi'><target>t</target></usage>", ephemeral="yes", private="yes"
    ),
    "clash.xml": secrets.xml(NOBODY, secrets.volume("/images/a")),
    "broken.xml": "<secret",
    "value": "plain text",
    "value.base64": "cGxhaW4gdGV4dA==",
}

STORY = [
    "secret-list",
    "secret-define $DIR/volume.xml",
    "secret-define $DIR/iscsi.xml --validate",
    "secret-define $DIR/clash.xml",
    "secret-define $DIR/broken.xml",
    "secret-define $DIR/no-such-file.xml",
    f"secret-dumpxml {FIRST}",
    f"secret-dumpxml {SECOND}",
    f"secret-dumpxml {NOBODY}",
    "secret-dumpxml nonsense",
    f"secret-get-value {FIRST}",
    f"secret-set-value {FIRST} YWJj",
    f"secret-get-value {FIRST}",
    f"secret-set-value {FIRST} --file $DIR/value --plain",
    f"secret-get-value {FIRST} --plain",
    f"secret-set-value {FIRST} --file $DIR/value.base64",
    f"secret-get-value {FIRST}",
    f"secret-set-value {FIRST} ''",
    f"secret-set-value {FIRST} '%%%'",
    f"secret-set-value {SECOND} YWJj",
    f"secret-get-value {SECOND}",
    f"secret-get-value {NOBODY}",
    "secret-list",
    "secret-list --ephemeral",
    "secret-list --no-ephemeral",
    "secret-list --private",
    "secret-list --no-private",
    "secret-list --private --no-ephemeral",
    "secret-event --list",
    f"secret-undefine {SECOND}",
    f"secret-undefine {SECOND}",
    f"secret-undefine {FIRST}",
    "secret-list",
]


@pytest.fixture(scope="module")
def keepers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemons]:
    """Libvirt's daemon with its driver of secrets, and storaged's."""
    base = tmp_path_factory.mktemp("keepers")
    places = [base / name for name in "ab"]
    for place in places:
        place.mkdir()
        for name, text in FILES.items():
            (place / name).write_text(text)
    with (
        libvirtd(base / "libvirt", secrets=True) as theirs,
        storaged_daemon(base / "storaged") as ours,
    ):
        yield Daemons(
            Served("libvirtd", theirs.root, theirs.socket, theirs.pid, places[0], "secret"),
            Served("storaged", ours.root, ours.socket, ours.pid, places[1], "secret"),
        )


@pytest.fixture(scope="module")
def peers(keepers: Daemons) -> Iterator[Peers]:
    with open_peers(secrets, keepers) as opened:
        yield opened


HELPERS = ("xml", "volume")


@pytest.mark.parametrize("scenario", [s for s in scenarios(secrets) if s not in HELPERS])
def test_scenario(peers: Peers, scenario: str) -> None:
    peers.same(scenario)


def test_virsh(keepers: Daemons) -> None:
    printed = both(keepers, "secrets", STORY)
    assert "Secret is private" not in printed[20].output
    assert "secret is private" in printed[20].errors
    assert printed[16].output == "cGxhaW4gdGV4dA==\n"


def test_virsh_that_only_reads(keepers: Daemons) -> None:
    both(keepers, "before", ["secret-define $DIR/volume.xml", f"secret-set-value {FIRST} YWJj"])
    commands = [
        "secret-list",
        f"secret-dumpxml {FIRST}",
        f"secret-get-value {FIRST}",
        f"secret-set-value {FIRST} YWJj",
        "secret-define $DIR/volume.xml",
        f"secret-undefine {FIRST}",
    ]
    printed = both(keepers, "read only", commands, "-r")
    refused = ["read only access prevents virSecret" in found.errors for found in printed]
    assert refused == [False, False, True, True, True, True]
    both(keepers, "after", [f"secret-undefine {FIRST}"])


@pytest.mark.parametrize("event", ["lifecycle", "value-changed"])
def test_virsh_hears_events(keepers: Daemons, event: str) -> None:
    heard = []
    for served in keepers:
        watcher = virsh.start(served, "secret-event", "--event", event, "--loop")
        time.sleep(0.5)  # there is nothing harmless to try it with
        commands = [
            "secret-define $DIR/volume.xml",
            f"secret-set-value {FIRST} YWJj",
            f"secret-undefine {FIRST}",
        ]
        virsh.end(served, virsh.begin(served, commands), commands)
        time.sleep(0.2)  # what is on its way arrives
        watcher.terminate()
        output, _ = watcher.communicate(timeout=30)
        heard.append([line for line in output.splitlines() if line.startswith("event '")])
    theirs, ours = heard
    compare(f"events: {event}", theirs, ours)
    assert len(ours) == {"lifecycle": 2, "value-changed": 1}[event]


def test_the_same_over_the_driver_of_storage(keepers: Daemons) -> None:
    """Ours serves secrets whichever of the two a client opens."""
    ours = keepers.ours
    uri = ours.uri.replace("secret:", "storage:")
    process = virsh.start(ours, "secret-define $DIR/volume.xml; secret-list", uri=uri)
    output, errors = process.communicate(timeout=30)
    assert errors == ""
    assert f"Secret {FIRST} created" in output
    assert f" {FIRST}   volume /images/a" in output
    assert virsh.alone(ours, "secret-undefine", FIRST)[0] == 0


RAW = bytes.fromhex(FIRST.replace("-", ""))
NAMED = RAW + wire.words(1) + wire.text("/w")
UNKNOWN = bytes(16) + wire.words(0) + wire.text("")
DOCUMENT = wire.text(secrets.xml(FIRST, "<usage type='volume'><volume>/w</volume></usage>"))

#: Procedures with their arguments, as clients of any kind may send them.
CALLS: list[tuple[int, bytes]] = [
    (139, b""),
    (140, wire.words(2**32 - 5)),
    (140, wire.words(16385)),
    (140, wire.words(0)),
    (142, DOCUMENT + wire.words(0)),
    (142, DOCUMENT + wire.words(2)),
    (142, wire.text("<secret") + wire.words(0)),
    (140, wire.words(0)),
    (140, wire.words(1)),
    (139, b""),
    (287, wire.words(0, 0)),
    (287, wire.words(1, 0)),
    (287, wire.words(1, 1)),
    (287, wire.words(1, 16)),
    (380, wire.words(7, 0)),
    (380, wire.words(2**32 - 1, 0)),
    (381, wire.words(99)),
    (381, wire.words(2**32 - 1)),
    (144, NAMED + wire.words(0, 0)),
    (144, NAMED + wire.words(0, 9)),
    (144, NAMED + wire.text("abcd") + wire.words(9)),
    (144, UNKNOWN + wire.text("abcd") + wire.words(0)),
    (145, NAMED + wire.words(0)),
    (144, NAMED + wire.text("abcd") + wire.words(0)),
    (145, NAMED + wire.words(0)),
    (145, UNKNOWN + wire.words(0)),
    (145, UNKNOWN + wire.words(2)),
    (143, UNKNOWN + wire.words(2)),
    (143, RAW + wire.words(4) + wire.text("another") + wire.words(0)),
    (147, wire.words(1) + wire.text("/w")),
    (147, wire.words(77) + wire.text("/w")),
    (141, RAW),
    (141, bytes(16)),
    (146, NAMED),
    (146, NAMED),
]


def replies(served: Served, *, readonly: bool) -> list[object]:
    """Return what a daemon answers, unopened and opened."""
    answers: list[object] = []
    with Connection(served.socket) as opened:
        assert opened.answer(opened.send(66)).status == wire.OK

        def ask(number: int, payload: bytes) -> None:
            packet = opened.answer(opened.send(number, payload))
            failed = packet.status != wire.OK
            answers.append(wire.error(packet.payload) if failed else packet.payload.hex())

        for number, payload in CALLS:
            ask(number, payload)
        name = wire.optional("secret:///system") + wire.words(int(readonly))
        ask(1, name)
        for number, payload in CALLS:
            ask(number, payload)
    return answers


@pytest.mark.parametrize("readonly", [False, True])
def test_packets(keepers: Daemons, readonly: bool) -> None:
    theirs, ours = (replies(served, readonly=readonly) for served in keepers)
    named = [f"{number} {payload.hex()}" for number, payload in CALLS]
    names = [*named, "open", *named]
    compare("packets", *({f"{n} {name}": answer for n, (name, answer) in enumerate(
        zip(names, found, strict=True))} for found in (theirs, ours)))  # fmt: skip


def test_files_are_libvirts(keepers: Daemons) -> None:
    """What both write is the same to the byte, with the same modes."""
    both(keepers, "files", ["secret-define $DIR/volume.xml", f"secret-set-value {FIRST} YWJj"])
    kept = []
    for served in keepers:
        place = served.root / "etc/libvirt/secrets"
        kept.append(
            {
                path.name: (path.read_bytes(), path.stat().st_mode & 0o7777)
                for path in place.iterdir()
                if path.name.startswith(FIRST)
            }
        )
    assert kept[0] == kept[1]
    assert len(kept[0]) == 2
    both(keepers, "files", [f"secret-undefine {FIRST}"])
