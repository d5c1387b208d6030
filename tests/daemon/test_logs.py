"""The log: libvirt's filters and outputs, the journal's datagrams, changes while it runs."""

from __future__ import annotations

import array
import logging
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from storaged.daemon.journal import JournalHandler
from storaged.daemon.logs import Logs, parse_filters, parse_outputs, source_of
from storaged.daemon.standarderror import StandardErrorHandler
from storaged.errors import InvalidArgument, NoSuchPool, OperationFailed, SystemFailure
from tests.daemon.running import storaged_daemon

_log = logging.getLogger("storaged.server.test")


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[Logs]:
    root = logging.getLogger()
    level = root.level
    with closing(Logs({}, journal=str(tmp_path / "journal"))) as found:
        yield found
    root.setLevel(level)


class Journal:
    """A journal that keeps what it gets."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(10)

    def next(self) -> dict[str, str]:
        room = socket.CMSG_SPACE(array.array("i").itemsize)
        data, ancillary, _, _ = self.socket.recvmsg(1 << 20, room)
        if ancillary:
            (fd,) = struct.unpack("i", ancillary[0][2])
            with os.fdopen(fd, "rb") as file:
                file.seek(0)
                data = file.read()
        return _fields(data)


def _fields(data: bytes) -> dict[str, str]:
    found = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack_from("<Q", data)
            value, data = data[8 : 8 + length], data[8 + length + 1 :]
        found[name.decode()] = value.decode()
    return found


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    found = Journal(tmp_path / "journal")
    yield found
    found.socket.close()


@pytest.mark.parametrize("text", ["1", "1:", ":x", "0:x", "5:x", "x:rpc", "1:a 9:b"])
def test_wrong_filters(text: str) -> None:
    with pytest.raises(InvalidArgument, match="is no log filter"):
        parse_filters(text)


@pytest.mark.parametrize(
    "text",
    [
        *("1", "1:what", "0:stderr", "1:stderr:x", "1:stderr:", "1:file", "1:file:"),
        *("1:file:relative", "1:syslog", "1:syslog:", "1:journald:x", "stderr", "1:stderr 2:x"),
    ],
)
def test_wrong_outputs(text: str) -> None:
    with pytest.raises(InvalidArgument, match="log output"):
        parse_outputs(text)


def test_what_is_read_is_told_in_the_same_way(logs: Logs, tmp_path: Path) -> None:
    outputs = f"1:file:{tmp_path}/a:b.log 3:stderr"
    logs.start(3, "1:storage  4:rpc.server\t3:*x*", outputs)
    assert logs.filters_text() == "1:storage 4:rpc.server 3:*x*"
    assert logs.outputs_text() == outputs


def test_sources_have_the_names_that_filters_for_libvirt_have() -> None:
    assert source_of("storaged.server.calls") == "rpc.server.calls"
    assert source_of("storaged.rpc") == "rpc"
    assert source_of("storaged.pool") == "storage.pool"
    assert source_of("storaged.backends.dir") == "storage.backend.dir"
    assert source_of("storaged.daemon.main") == "daemon.main"
    assert source_of("other") == "other"


def test_levels_filters_and_outputs(logs: Logs, tmp_path: Path) -> None:
    every, few = tmp_path / "every", tmp_path / "few"
    logs.start(3, "", f"1:file:{every} 4:file:{few}")
    assert (every.stat().st_mode & 0o777) == 0o600
    _log.info("one")
    _log.warning("two")
    _log.error("three")
    logs.set_filters("1:rpc.server")
    _log.debug("four")
    logging.getLogger("storaged.pool").info("five")
    logs.set_filters("4:rpc 1:rpc.server")  # the first that matches decides
    _log.warning("six")
    logs.set_filters(None)
    _log.debug("seven")
    words = [line.split()[-1] for line in every.read_text().splitlines()]
    assert words == ["two", "three", "four"]
    assert [line.split()[-1] for line in few.read_text().splitlines()] == ["three"]
    assert " ERROR storaged.server.test: three" in few.read_text()


def test_a_wrong_change_changes_nothing(logs: Logs, tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.start(2, "3:rpc", f"1:file:{file}")
    before = len(logging.getLogger().handlers)
    with pytest.raises(SystemFailure):
        logs.set_outputs(f"1:file:{tmp_path}/other 1:file:{tmp_path}/none/x")
    with pytest.raises(InvalidArgument):
        logs.start(1, "x", "1:stderr")
    assert len(logging.getLogger().handlers) == before
    assert (logs.filters_text(), logs.outputs_text()) == ("3:rpc", f"1:file:{file}")
    _log.error("still")
    assert "still" in file.read_text()


def test_a_file_that_was_moved_away_is_let_go(logs: Logs, tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.start(3, "", f"1:file:{file}")
    _log.error("old")
    file.rename(tmp_path / "log.1")
    logs.start(3, "", f"1:file:{file}")
    _log.error("new")
    assert "new" in file.read_text()
    assert "new" not in (tmp_path / "log.1").read_text()


def test_answers_that_tell_of_a_question_are_not_worth_more_than_debug(
    logs: Logs, tmp_path: Path
) -> None:
    file = tmp_path / "log"
    logs.start(2, "", f"1:file:{file}")
    for error in (NoSuchPool("quiet"), OperationFailed("loud")):
        try:
            raise error
        except Exception:
            _log.exception("a call failed")
    _log.error("quiet", extra={"code": 50})
    text = file.read_text()
    assert "loud" in text
    assert "quiet" not in text


def test_the_journal_gets_fields(logs: Logs, journal: Journal) -> None:
    logs.start(3, "", "1:journald")
    _log.warning("two\nlines", extra={"pool": "images", "volume": "a=b", "job": 7})
    found = journal.next()
    assert found["MESSAGE"] == "two\nlines"
    assert (found["PRIORITY"], found["SYSLOG_IDENTIFIER"]) == ("4", "storaged")
    assert found["CODE_FILE"] == __file__
    assert found["CODE_FUNC"] == "test_the_journal_gets_fields"
    assert int(found["CODE_LINE"]) > 0
    assert (found["STORAGED_POOL"], found["STORAGED_VOLUME"]) == ("images", "a=b")
    assert found["STORAGED_JOB"] == "7"
    try:
        raise OperationFailed("no")
    except OperationFailed:
        _log.exception("it failed")
    found = journal.next()
    assert (found["PRIORITY"], found["LIBVIRT_CODE"], found["LIBVIRT_DOMAIN"]) == ("3", "9", "18")
    assert "Traceback" in found["MESSAGE"]


def test_what_no_datagram_can_hold_comes_as_a_file(logs: Logs, journal: Journal) -> None:
    logs.start(3, "", "1:journald")
    _log.error("%s", "x" * 3_000_000)
    assert len(journal.next()["MESSAGE"]) == 3_000_000


def test_a_journal_that_is_gone_stops_nothing(tmp_path: Path) -> None:
    with closing(JournalHandler(address=str(tmp_path / "none"))) as handler:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "odd \udcff", (), None)
        handler.emit(record)


def test_a_journal_that_does_not_read_holds_up_one_record(journal: Journal) -> None:
    with closing(JournalHandler(address=journal.socket.getsockname())) as handler:
        began = time.monotonic()
        for number in range(2000):
            handler.emit(_record(f"number {number}"))
        assert time.monotonic() - began < 1.5
        assert journal.next()["MESSAGE"] == "number 0"
        handler.emit(_record("again"))
        last = ""
        while last != "again":
            last = journal.next()["MESSAGE"]


def test_a_standard_error_that_nobody_reads_holds_up_one_record() -> None:
    reader, writer = os.pipe()
    handler = StandardErrorHandler(writer)
    try:
        began = time.monotonic()
        for number in range(2000):
            handler.emit(_record(f"number {number} {'x' * 100}"))
        assert time.monotonic() - began < 1.5
        came = os.read(reader, 1 << 20)  # all that a pipe holds
        handler.emit(_record("again \udcff"))
        came += os.read(reader, 1 << 20)
    finally:
        os.close(reader)
        os.close(writer)
    lines = came.decode().splitlines()
    assert lines[0].startswith("number 0 ")
    assert lines[-1] == "again \\udcff"
    taken = len(lines) - 2
    assert lines[-2].endswith(f"... {2000 - taken} lines of the log were lost: nobody read them")
    handler.emit(_record("nobody is there any more"))  # the descriptor is closed: no error


def _record(message: str) -> logging.LogRecord:
    return logging.LogRecord("x", logging.WARNING, "f", 1, message, (), None)


def test_the_default_output(tmp_path: Path, journal: Journal) -> None:
    found = os.fstat(2)
    ours = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
    other = {"JOURNAL_STREAM": "1:2"}
    file = tmp_path / "logs/x.log"
    path = str(tmp_path / "journal")
    for environ, at, where, expected in (
        ({}, None, path, "3:stderr"),
        (ours, None, path, "3:journald"),
        (other, None, path, "3:stderr"),
        (ours, None, str(tmp_path / "none"), "3:stderr"),
        ({}, file, path, "3:journald"),
        ({}, file, str(tmp_path / "none"), f"3:file:{file}"),
    ):
        with closing(Logs(environ, file=at, journal=where)) as logs:
            logs.start(3, "", "")
            assert logs.outputs_text() == expected


def test_the_daemons_log_follows_its_configuration(tmp_path: Path) -> None:
    file = tmp_path / "the.log"
    with storaged_daemon(tmp_path, config=f'log_outputs = "2:file:{file}"\nlog_level = 1\n'):
        pass
    assert "INFO storaged.daemon.program: storaged" in file.read_text()
    assert "SIGTERM: ending" in file.read_text()
