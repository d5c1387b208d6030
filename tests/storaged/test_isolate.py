"""Children that serve a class: many calls at once, and whatever may become of a child."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from storaged import isolate, isolatescript, isolatesession
from storaged.errors import Cancelled, Timeout
from storaged.isolate import ChildDied, Isolated, ServiceError, Session
from storaged.job import Job
from tests.doubles import eventually

PATIENCE = 20.0
_TOY = "storaged.toyservice"
_HERE = Path(__file__).parent

Make = Callable[..., Isolated]


def greet(session: Session) -> None:
    """See that a new child is there."""
    session.begin("echo", {}).take(PATIENCE)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Fail if a test leaves a child, a thread or a descriptor."""
    before = _left()
    yield
    with suppress(AssertionError):
        eventually(lambda: _left() == before)
    assert _left() == before


def _left() -> tuple[list[str], list[str], int]:
    children = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            children += (task / "children").read_text().split()
    threads = [thread.name for thread in threading.enumerate() if "isolate" in thread.name]
    return sorted(children), threads, len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """A function: ``make()`` gives a service that is ended after the test."""
    monkeypatch.setattr(isolate, "_PAUSE", 0.05)
    made: list[Isolated] = []

    def make(python: str = sys.executable, module: str = _TOY, **options: Any) -> Isolated:
        found = Isolated(python, module, **{"greet": greet, "package": _HERE, **options})
        made.append(found)
        return found

    yield make
    for found in made:
        found.kill()


@pytest.fixture
def toy(make: Make) -> Isolated:
    return make()


@pytest.fixture
def quick_pulse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolatesession, "_PULSE", 0.5)


def fails_with(reply: isolate.Reply, text: str) -> None:
    with pytest.raises(ChildDied, match=text):
        reply.take(PATIENCE)


def gone(pid: int) -> bool:
    """Tell whether a process has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def stop(isolated: Isolated) -> None:
    """Stop a child; whoever kills it later kills it all the same."""
    pid = isolated.session().pid
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: "T (stopped)" in Path(f"/proc/{pid}/status").read_text())


# Calls


def test_many_calls_at_once(toy: Isolated) -> None:
    wrong: list[int] = []

    def ask(first: int) -> None:
        numbers = range(first, first + 30)
        replies = [(number, toy.begin("echo", value=[number, "ä"])) for number in numbers]
        wrong.extend(n for n, reply in replies if reply.take(PATIENCE) != [n, "ä"])

    threads = [threading.Thread(target=ask, args=(1000 * number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_more_calls_than_threads_queue(toy: Isolated) -> None:
    most = isolatescript.THREADS
    replies = [toy.begin("meet", others=most) for _ in range(most + 16)]
    assert {reply.take(PATIENCE) for reply in replies} == {most}
    assert all(reply.ended for reply in replies)


def test_a_waiting_call_that_nobody_waits_for_is_never_begun(toy: Isolated) -> None:
    busy = [toy.begin("sleep", seconds=0.5) for _ in range(isolatescript.THREADS)]
    with pytest.raises(Timeout, match="no answer to 'see' within"):
        toy.call("see", 0.1, name="late")
    for reply in busy:
        reply.take(PATIENCE)
    assert toy.call("seen", PATIENCE) == []


@pytest.mark.parametrize(
    ("verb", "kind", "errno", "text"),
    [
        ("fail", "FileNotFoundError", 2, "/none"),
        ("refuse", "Failure", 107, "no connection\n\udcff"),
        ("leave", "SystemExit", 0, "3"),
        ("mumble", "TypeError", 0, "set"),
        ("unknown", "AttributeError", 0, "do_unknown"),
    ],
)
def test_errors_keep_class_number_and_text(
    toy: Isolated, verb: str, kind: str, errno: int, text: str
) -> None:
    with pytest.raises(ServiceError) as caught:
        toy.call(verb, PATIENCE)
    assert (caught.value.kind, caught.value.errno) == (kind, errno)
    assert text in str(caught.value)
    assert toy.call("echo", PATIENCE, value=1) == 1


def test_a_request_that_cannot_be_said_costs_the_caller_only(
    toy: Isolated, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = toy.session()
    with pytest.raises(TypeError):
        toy.call("echo", PATIENCE, value={1})
    monkeypatch.setattr(isolatescript, "_LONGEST", 1000)
    with pytest.raises(ValueError, match="a message of"):
        toy.call("echo", PATIENCE, value="x" * 1000)
    monkeypatch.undo()
    assert toy.session() is session
    assert session._pending == {}


def test_a_reply_may_be_long_but_not_too_long(toy: Isolated) -> None:
    assert toy.call("make", PATIENCE, size=10_000_000) == "x" * 10_000_000
    assert toy.call("echo", PATIENCE, value="y" * 10_000_000) == "y" * 10_000_000
    toy.call("set", PATIENCE, name="_LONGEST", value=1000)
    with pytest.raises(ServiceError, match="a message of"):
        toy.call("make", PATIENCE, size=1000)
    assert toy.call("echo", PATIENCE, value=1) == 1


def test_what_nobody_asked_for(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Any] = []

    def hear(name: str, fact: Any) -> None:
        heard.append((name, fact))
        raise RuntimeError(name)

    toy = make(hear=hear)
    toy.call("tell", PATIENCE, name="changed", fact={"a": [1]})
    toy.call("tell", PATIENCE, name="changed", fact=None)
    assert heard == [("changed", {"a": [1]}), ("changed", None)]
    assert "a listener to a child failed" in caplog.text


# Descriptors


def test_descriptors_come_with_their_calls_and_are_closed(toy: Isolated) -> None:
    before = toy.call("descriptors", PATIENCE)

    def read(first: int) -> None:
        for number in range(first, first + 20):
            fd = os.memfd_create("number")
            os.write(fd, b"%d" % number)
            reply = toy.begin("read", fd=fd)
            other = toy.begin("echo", value=-number)
            os.close(fd)
            found.append(reply.take(PATIENCE) == str(number) and other.take(PATIENCE) == -number)

    found: list[bool] = []
    threads = [threading.Thread(target=read, args=(100 * at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 160
    with Path("/dev/null").open("rb") as file:
        for verb in ("fail", "unknown"):
            with pytest.raises(ServiceError):
                toy.begin(verb, fd=file.fileno()).take(PATIENCE)
        replies = [toy.begin("sleep", fd=file.fileno(), seconds=0.2) for _ in range(50)]
        for reply in replies:
            with suppress(Timeout):
                reply.take(0)
    eventually(lambda: toy.call("descriptors", PATIENCE) == before)


def test_a_descriptor_that_is_closed_costs_the_caller_only(toy: Isolated) -> None:
    session = toy.session()
    fd = os.memfd_create("closed")
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        toy.begin("read", fd=fd)
    assert toy.session() is session


def test_a_child_without_room_for_a_descriptor_does_not_take_another_for_it(toy: Isolated) -> None:
    toy.call("bound", PATIENCE)
    with Path("/dev/null").open("rb") as file:
        fails_with(toy.begin("read", fd=file.fileno()), "no room for one more descriptor")


# Time, progress, cancelling


@pytest.mark.parametrize("with_job", [True, False])
def test_progress_extends_the_time(toy: Isolated, with_job: bool) -> None:
    job: Job[None] = Job("flatten")
    told: list[tuple[int, int]] = []
    job.subscribe(lambda progress: told.append((progress.done, progress.total)))
    given = job if with_job else None
    assert toy.call("step", 1.2, job=given, steps=6, seconds=0.3) == "done"
    if with_job:
        assert job.total == 6
        assert job.done >= 3
        assert len(told) > 2
        assert told == sorted(told)
    with pytest.raises(Timeout):
        toy.call("step", 0.2, steps=1, seconds=0.5)


def test_a_time_out_leaves_a_child_that_is_well(toy: Isolated) -> None:
    pid = toy.session().pid
    reply = toy.begin("sleep", seconds=0.4)
    with pytest.raises(Timeout, match="no answer to 'sleep' within"):
        reply.take(0.1)
    assert reply.take(PATIENCE) is None
    assert toy.call("echo", PATIENCE, value=1) == 1
    assert toy.pid == pid
    assert toy.session()._given_up == set()


def test_a_cancel_reaches_the_work(toy: Isolated) -> None:
    job: Job[None] = Job("flatten")
    threading.Timer(0.2, job.cancel).start()
    with pytest.raises(Cancelled):
        toy.call("step", PATIENCE, job=job, steps=1000, seconds=0.02)
    with pytest.raises(Cancelled):
        toy.call("see", PATIENCE, job=job, name="late")
    assert toy.call("seen", PATIENCE) == []


@pytest.mark.parametrize("verb", ["linger", "break"])
def test_what_ends_in_spite_of_a_cancel_ends_as_it_did(toy: Isolated, verb: str) -> None:
    job: Job[None] = Job("flatten")
    threading.Timer(0.1, job.cancel).start()
    if verb == "linger":
        assert toy.call(verb, PATIENCE, job=job) == "done"
    else:
        with pytest.raises(ServiceError, match="broken"):
            toy.call(verb, PATIENCE, job=job)


# Children that give no sign


@pytest.mark.usefixtures("quick_pulse")
@pytest.mark.parametrize("how", ["stopped", "holding"])
def test_a_child_that_gives_no_sign_is_killed(toy: Isolated, how: str) -> None:
    other = toy.begin("sleep", seconds=60)
    pid = toy.session().pid
    if how == "stopped":
        stop(toy)
        reply = toy.begin("echo")
    else:
        reply = toy.begin("hold")
    with pytest.raises(ChildDied, match="no sign of life"):
        reply.take(0.3)
    fails_with(other, "no sign of life")
    assert toy.call("echo", PATIENCE, value=1) == 1
    assert toy.pid not in (None, pid)
    eventually(lambda: gone(pid))


@pytest.mark.usefixtures("quick_pulse")
def test_a_child_that_takes_no_requests_is_killed(toy: Isolated) -> None:
    stop(toy)
    began = time.monotonic()
    reply = toy.begin("echo", value="x" * 10_000_000)
    fails_with(reply, "takes no requests")
    assert time.monotonic() - began < 5


def test_a_child_that_takes_no_requests_can_be_killed_meanwhile(toy: Isolated) -> None:
    stop(toy)
    session = toy.session()
    caught: list[BaseException] = []

    def ask() -> None:
        try:
            toy.call("echo", PATIENCE, again=True, value="x" * 10_000_000)
        except ChildDied as err:
            caught.append(err)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(session._pending) == 8 and session._channel._sending.locked())
    began = time.monotonic()
    toy.kill()
    for thread in threads:
        thread.join(PATIENCE)
    assert time.monotonic() - began < isolatesession._PULSE
    assert len(caught) == 8
    assert toy.pid is None  # not even those who would have asked again started another one


def test_a_child_whose_threads_are_all_lost_is_killed(
    toy: Isolated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolatesession, "THREADS", 3)
    lost = [toy.begin("sleep", seconds=60) for _ in range(6)]
    for reply in lost[:2]:
        with pytest.raises(Timeout):
            reply.take(0)
    threading.Timer(0.2, lambda: toy.call("echo", PATIENCE)).start()
    with pytest.raises(Timeout):
        lost[2].take(1.0)  # another call was answered meanwhile
    with pytest.raises(ChildDied, match="does not come to an end with anything"):
        lost[3].take(0.2)
    fails_with(lost[4], "does not come to an end with anything")
    assert toy.call("echo", PATIENCE, value=1) == 1


# Children that die


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV])
def test_a_death_fails_the_calls_in_flight(make: Make, number: signal.Signals) -> None:
    toy, other = make(), make()
    elsewhere = other.begin("sleep", seconds=0.5)
    pid = toy.session().pid
    with Path("/dev/null").open("rb") as file:
        replies = [toy.begin("sleep", fd=file.fileno(), seconds=60) for _ in range(50)]
    outcome: list[Any] = []
    again = threading.Thread(
        target=lambda: outcome.append(toy.call("step", 60, again=True, steps=1, seconds=0.5))
    )
    again.start()
    eventually(lambda: len(toy.session()._pending) == 51)
    fails_with(toy.begin("signal", number=number), f"ended by signal {number} .{number.name}")
    for reply in replies:
        fails_with(reply, number.name)
        fails_with(reply, number.name)  # however often one asks
    again.join(PATIENCE)
    assert outcome == ["done"]
    assert toy.pid not in (None, pid)
    assert elsewhere.take(PATIENCE) is None


def test_a_session_that_is_dead_stays_so(toy: Isolated) -> None:
    session = toy.session()
    assert not session.ended
    os.kill(session.pid, signal.SIGKILL)
    eventually(lambda: not session.alive)
    with pytest.raises(ChildDied, match="SIGKILL"):
        session.begin("echo", {})
    assert not session.ended
    session.kill()
    session.close()
    assert toy.call("echo", PATIENCE, value=1) == 1


def framed(body: str) -> bytes:
    """Return a message as it is sent."""
    return len(body).to_bytes(4, "little") + body.encode()


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\xff\xff\xff",
        b"\x03\0\0\0\xff\xff\xff",
        framed("{"),
        framed("null"),
        framed("[]"),
        framed('[[1],"done",1]'),
        framed('[2,"failed",[]]'),
        framed('[2,"failed",null]'),
        framed('[2,"progress",[1]]'),
        framed("[" * 100_000),
    ],
    ids=lambda said: repr(said[4:24]),
)
def test_a_child_that_talks_nonsense_is_killed(toy: Isolated, said: bytes) -> None:
    pid = toy.session().pid
    reply = toy.begin("sleep", seconds=60)
    assert reply._number == 2
    toy.begin("say", data=said.hex())
    fails_with(reply, "was killed: it talks nonsense")
    assert toy.call("echo", PATIENCE, value=1) == 1
    eventually(lambda: gone(pid))


def test_replies_to_nobody_are_dropped(toy: Isolated) -> None:
    for said in ('[99,"done",1]', '[99,"failed",["E",0,""]]', '[99,"progress",[1,2]]'):
        toy.call("say", PATIENCE, data=framed(said).hex())
    assert toy.call("echo", PATIENCE, value=1) == 1


# Children that cannot start


def _broken(folder: Path) -> dict[str, dict[str, Any]]:
    (folder / "raises.py").write_text("class Service:\n    def __init__(self, hear): hear.x\n")
    (folder / "wrong.py").write_text("import nowhere\n")
    (folder / "text").write_text("text")
    return {
        "No such file": {"python": str(folder / "python")},
        "Permission denied": {"python": str(folder / "text")},
        "has ended with status 1: ModuleNotFoundError.*'storaged.none'": {
            "module": "storaged.none"
        },
        "No module named 'nowhere'": {"module": "storaged.wrong", "package": folder},
        "has no attribute 'x'": {"module": "storaged.raises", "package": folder},
        "has ended with status 0": {"python": "/bin/true"},
    }


@pytest.mark.parametrize("at", range(6))
def test_a_child_that_cannot_start(make: Make, tmp_path: Path, at: int) -> None:
    text, options = list(_broken(tmp_path).items())[at]
    toy = make(**options)
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(ChildDied, match=text):
            toy.call("echo", PATIENCE, again=True)
        assert time.monotonic() - began < 5
    assert toy.pid is None


def test_a_child_that_cannot_start_is_not_started_again_and_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[float] = []

    def start(*given: Any) -> Session:
        starts.append(time.monotonic())
        return isolatesession.start(*given)

    toy = make(module="storaged.none")
    monkeypatch.setattr(isolate, "_PAUSE", 1.0)
    monkeypatch.setattr(isolate, "start", start)
    longest: list[float] = []

    def ask() -> None:
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(ChildDied):
                toy.call("echo", PATIENCE, again=True)
            longest.append(time.monotonic() - began)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(longest) == 24
    assert max(longest) < 5
    assert all(after - before > 0.99 for before, after in pairwise(starts))
    monkeypatch.setattr(isolate, "_PAUSE", 60.0)
    for _ in range(2):  # whoever ends it himself need not wait for the next one
        toy.close()
        with pytest.raises(ChildDied):
            toy.call("echo", PATIENCE)


def test_a_greeting_that_fails(make: Make) -> None:
    pids: list[int] = []

    def greet(session: Session) -> None:
        pids.append(session.pid)
        if len(pids) < 3:
            raise LookupError("nobody knows us")

    toy = make(greet=greet)
    for _ in range(2):
        with pytest.raises(LookupError):
            toy.call("echo", PATIENCE)
        assert toy.pid is None
    assert toy.call("echo", PATIENCE, value=1) == 1
    assert toy.pid == pids[-1]
    eventually(lambda: gone(pids[0]) and gone(pids[1]))


def test_nobody_has_a_child_that_is_being_greeted(make: Make) -> None:
    greeted = threading.Event()

    def greet(session: Session) -> None:
        session.begin("see", {"name": "greeting"}).take(PATIENCE)
        greeted.wait(PATIENCE)

    toy = make(greet=greet)
    outcome: list[Any] = []
    threads = [
        threading.Thread(target=lambda: outcome.append(toy.call("seen", PATIENCE)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    assert (outcome, toy.pid) == ([], None)
    greeted.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert outcome == [["greeting"]] * 4


# Ending


@pytest.mark.parametrize("verb", ["kill", "close"])
def test_an_end_while_the_child_is_greeted(make: Make, verb: str) -> None:
    pids: list[int] = []

    def greet(session: Session) -> None:
        pids.append(session.pid)
        session.begin("sleep", {"seconds": 1.0}).take(60)

    toy = make(greet=greet)
    caught: list[ChildDied] = []

    def ask() -> None:
        with pytest.raises(ChildDied) as found:
            toy.call("echo", 60, again=True)
        caught.append(found.value)

    thread = threading.Thread(target=ask)
    thread.start()
    eventually(lambda: bool(pids))
    getattr(toy, verb)()
    thread.join(PATIENCE)
    assert "was killed" in str(caught[0]) or "was closed" in str(caught[0])
    eventually(lambda: gone(pids[0]))
    assert len(pids) == 1


@pytest.mark.parametrize("verb", ["kill", "close"])
def test_an_end_while_the_child_is_started(
    make: Make, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    started, ended = threading.Event(), threading.Event()
    sessions: list[Session] = []

    def start(*given: Any) -> Session:
        sessions.append(isolatesession.start(*given))
        started.set()
        ended.wait(PATIENCE)
        return sessions[0]

    monkeypatch.setattr(isolate, "start", start)
    toy = make(greet=lambda _session: None)
    caught: list[ChildDied] = []

    def ask() -> None:
        with pytest.raises(ChildDied) as found:
            toy.call("echo", 60)
        caught.append(found.value)

    thread = threading.Thread(target=ask)
    thread.start()
    started.wait(PATIENCE)
    getattr(toy, verb)()
    ended.set()
    thread.join(PATIENCE)
    assert "was killed" in str(caught[0])
    assert toy.pid is None
    eventually(lambda: gone(sessions[0].pid))


def test_a_call_after_an_end_does_not_wait_for_what_was_ended(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids: list[int] = []
    greeted = threading.Event()

    def greet(session: Session) -> None:
        pids.append(session.pid)
        if len(pids) == 1:
            greeted.wait(PATIENCE)
            session.begin("echo", {}).take(PATIENCE)

    toy = make(greet=greet)
    monkeypatch.setattr(isolate, "_PAUSE", 60.0)
    caught: list[ChildDied] = []

    def ask() -> None:
        with pytest.raises(ChildDied) as found:
            toy.session()
        caught.append(found.value)

    thread = threading.Thread(target=ask)
    thread.start()
    eventually(lambda: bool(pids))
    toy.close()
    assert toy.call("echo", PATIENCE, value=1) == 1
    greeted.set()
    thread.join(PATIENCE)
    assert "was closed" in str(caught[0])
    assert toy.call("echo", PATIENCE, value=1) == 1
    assert toy.pid == pids[1]


def test_close_lets_the_work_come_to_its_end(toy: Isolated, tmp_path: Path) -> None:
    note = tmp_path / "note"
    toy.call("note", PATIENCE, path=str(note))
    reply = toy.begin("finish", path=str(note), seconds=0.5)
    eventually(lambda: bool(toy.call("seen", PATIENCE)))
    pid = toy.session().pid
    toy.close()
    fails_with(reply, "was closed")
    eventually(lambda: gone(pid))
    assert note.read_text() == "finished closed"
    assert toy.call("echo", PATIENCE, value=1) == 1
    toy.close()
    toy.close()


def test_the_end_of_the_work_is_bounded(toy: Isolated, tmp_path: Path) -> None:
    note = tmp_path / "note"
    toy.call("note", PATIENCE, path=str(note))
    toy.call("set", PATIENCE, name="_LAST_WORDS", value=0.2)
    toy.begin("sleep", seconds=60)
    toy.call("echo", PATIENCE)
    toy.close()
    eventually(note.exists)


def test_the_end_of_the_service_is_bounded(toy: Isolated, tmp_path: Path) -> None:
    toy.call("set", PATIENCE, name="ENDING", value=1)
    toy.call("note", PATIENCE, path=str(tmp_path / "note"), closing=60)
    session = toy.session()
    toy.close()
    eventually(lambda: gone(session.pid))


@pytest.mark.parametrize("how", ["stopped", "holding"])
def test_close_of_a_child_that_gives_no_sign(
    toy: Isolated, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(isolatesession, "_PATIENCE", 0.3)
    session = toy.session()
    if how == "stopped":
        stop(toy)
    else:
        toy.begin("hold")
    toy.close()
    eventually(lambda: gone(session.pid))
