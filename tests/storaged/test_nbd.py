"""The NBD client against a server that says whatever a test wants it to say.

What a real one says is in tests/qsd/test_export.py.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.nbd import NbdHandle
from storaged.nbdreplies import MAX_REPLY

SIZE = 1 << 20
#: The most that one request of the client asks for.
PIECE = 1 << 18
GREETING = b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3)
CONTEXT = 7
#: Has flags, and can flush, trim and write zeros.
FLAGS = 1 | 4 | 32 | 64
NONE, DATA, HOLE, STATUS, ERROR = 0, 1, 2, 5, 0x8001
READ, WRITE, DISCONNECT, FLUSH, TRIM, ZEROES, ASK = 0, 1, 2, 3, 4, 6, 7

Request = tuple[int, int, int, int, int]
Answer = Callable[[Request, bytes], bytes | None]


def option(number: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, number, kind, len(data)) + data


#: How a server begins that refuses structured replies.
NO_STRUCTURES = GREETING + option(8, 2**31 + 1)


def negotiation(size: int = SIZE, flags: int = FLAGS) -> bytes:
    """Return all that a good server says before the first request."""
    return (
        GREETING
        + option(8, 1)
        + option(10, 4, struct.pack(">I", CONTEXT) + b"base:allocation")
        + option(10, 1)
        + option(7, 3, struct.pack(">HQH", 0, size, flags))
        + option(7, 3, struct.pack(">HIII", 3, 1, 4096, 1 << 25))
        + option(7, 1)
    )


def chunk(cookie: int, kind: int, data: bytes = b"", *, done: bool = True) -> bytes:
    return struct.pack(">IHHQI", 0x668E33EF, done, kind, cookie, len(data)) + data


def simple(cookie: int, error: int = 0) -> bytes:
    return struct.pack(">IIQ", 0x67446698, error, cookie)


def failure(cookie: int, number: int, text: bytes = b"") -> bytes:
    return chunk(cookie, ERROR, struct.pack(">IH", number, len(text)) + text)


@contextmanager
def served(answer: Answer | None = None, greeting: bytes | None = None) -> Iterator[NbdHandle]:
    """Give a handle on a server that answers each request with what *answer* makes of it."""
    ours, theirs = socket.socketpair()
    said = negotiation() if greeting is None else greeting
    thread = threading.Thread(target=serve, args=(theirs, said, answer))
    thread.start()
    try:
        with NbdHandle(ours, "disk") as handle:
            yield handle
    finally:
        ours.close()
        thread.join()


def serve(sock: socket.socket, greeting: bytes, answer: Answer | None) -> None:
    with sock, sock.makefile("rb") as stream:
        try:
            sock.sendall(greeting)
            if answer is None:
                sock.shutdown(socket.SHUT_WR)
            # our flags, then three options
            stream.read(4)
            while (head := stream.read(16)) and struct.unpack(">8sII", head)[1] != 7:
                stream.read(struct.unpack(">8sII", head)[2])
            if head:
                stream.read(struct.unpack(">8sII", head)[2])
            while answer is not None and len(head := stream.read(28)) == 28:
                magic, flags, kind, cookie, offset, length = struct.unpack(">IHHQQI", head)
                assert magic == 0x25609513
                data = stream.read(length) if kind == WRITE else b""
                said = answer((kind, flags, cookie, offset, length), data)
                if said is None:
                    return
                sock.sendall(said)
        except OSError:
            return


def always(kind: int, data: bytes = b"", *, done: bool = True) -> Answer:
    return lambda request, _: chunk(request[2], kind, data, done=done)


def broken(act: Callable[[NbdHandle], object], answer: Answer) -> None:
    """The server broke the rules: that is said, and the connection is given up."""
    with served(answer) as handle:
        with pytest.raises(OSError, match="Protocol error: ") as caught:
            act(handle)
        assert caught.value.errno == errno.EPROTO
        with pytest.raises(OSError):  # noqa: PT011 -- whichever the kernel says of a lost one
            handle.pread(1, 0)


def test_negotiation() -> None:
    with served() as handle:
        assert handle.size() == SIZE
        assert handle.fileno() is None


@pytest.mark.parametrize(
    ("greeting", "why"),
    [
        (b"", "hung up"),
        (GREETING[:7], "hung up"),
        (b"HTTP/1.0 200 Fine.", "no fixed newstyle"),
        (GREETING[:16] + b"\0\0", "no fixed newstyle"),
        (GREETING, "hung up"),
        (GREETING + option(9, 1), "bad answer to option STRUCTURED_REPLY"),
        (GREETING + option(8, 1)[:-4] + b"\xff\xff\xff\xff", "bad answer"),
        (GREETING + 100 * option(8, 3, b"x"), "endless answers"),
        (NO_STRUCTURES + option(7, 1), "an export of None bytes"),
        (
            NO_STRUCTURES + option(7, 2**31 + 6, b"no\x1b"),
            r"refuses GO: 'no\\x1b'",
        ),
        (negotiation(2**64 - 1), "an export of 18446744073709551615 bytes"),
        (negotiation()[:-40] + bytes(40), "bad answer to option GO"),
    ],
)
def test_bad_negotiation(greeting: bytes, why: str) -> None:
    with pytest.raises(OSError, match=why), served(greeting=greeting):
        pass


def test_server_without_structured_replies() -> None:
    def answer(request: Request, data: bytes) -> bytes:
        kind, cookie, offset, length = request[0], *request[2:]
        if kind == READ and offset == 512:
            return simple(cookie, errno.EIO)
        return simple(cookie) + (b"d" * length if kind == READ else b"")

    said = NO_STRUCTURES
    said += option(7, 3, struct.pack(">HQH", 0, SIZE, 1)) + option(7, 1)
    with served(answer, said) as handle:
        assert handle.pread(100, 0) == b"d" * 100
        assert list(handle.map(10, 20)) == [(10, 20, True)]
        assert list(handle.map(SIZE, 20)) == []
        with pytest.raises(OSError, match="Input/output error"):
            handle.pread(1, 512)
        assert handle.pread(1, 0) == b"d"
        handle.write_zeroes(0, SIZE)
        handle.trim(0, 1)
        handle.flush()


def test_reads_in_parts() -> None:
    """Data and holes in any order, of several requests at a time."""

    def answer(request: Request, _: bytes) -> bytes:
        cookie, offset, length = request[2:]
        half = length // 2
        return (
            chunk(cookie, HOLE, struct.pack(">QI", offset + half, length - half), done=False)
            + chunk(cookie, DATA, struct.pack(">Q", offset) + b"x" * half, done=False)
            + chunk(cookie, NONE)
        )

    with served(answer, negotiation(64 << 20)) as handle:
        read = handle.pread(5 << 20, 0)
        assert read == (b"x" * (PIECE // 2) + bytes(PIECE // 2)) * 20


def test_writes() -> None:
    seen: list[tuple[int, int, int, int]] = []

    def answer(request: Request, data: bytes) -> bytes:
        kind, flags, cookie, offset, length = request
        seen.append((kind, flags, offset, length))
        return simple(cookie) if len(seen) % 2 else chunk(cookie, NONE)

    with served(answer, negotiation(8 << 30)) as handle:
        handle.pwrite(bytes(3 << 20), 5)
        handle.write_zeroes(1, (1 << 30) + 5)
        handle.write_zeroes(0, 9, unmap=False)
        handle.trim(7, 9)
        handle.flush()
    assert seen == [
        *((WRITE, 0, 5 + n * PIECE, PIECE) for n in range(12)),
        (ZEROES, 0, 1, 1 << 30),
        (ZEROES, 0, 1 + (1 << 30), 5),
        (ZEROES, 2, 0, 9),
        (TRIM, 0, 7, 9),
        (FLUSH, 0, 0, 0),
        (DISCONNECT, 0, 0, 0),
    ]


def test_map() -> None:
    def answer(request: Request, _: bytes) -> bytes:
        extents = [(100, 3), (200, 0), (50, 1), (request[4], 2)]
        said = struct.pack(">I", CONTEXT) + b"".join(struct.pack(">II", *e) for e in extents)
        return chunk(request[2], STATUS, said)

    with served(answer) as handle:
        assert list(handle.map(1000, 400)) == [
            (1000, 100, False),
            (1100, 200, True),
            (1300, 50, True),
            (1350, 50, False),
        ]


def test_errors_are_told() -> None:
    def answer(request: Request, _: bytes) -> bytes:
        kind, cookie, length = request[0], request[2], request[4]
        if kind == WRITE:
            return failure(cookie, errno.ENOSPC, b"full\x1b[2J" + b"!" * 300)
        if kind == ASK:
            return failure(cookie, 12345)
        if length == 1:
            return chunk(cookie, ERROR, struct.pack(">IH", 5, 0), done=False) + chunk(cookie, NONE)
        return simple(cookie, errno.EPERM)

    with served(answer) as handle:
        with pytest.raises(OSError, match=r"No space left on device: full\[2J!+$") as caught:
            handle.pwrite(b"x", 0)
        assert caught.value.errno == errno.ENOSPC
        assert len(str(caught.value)) < 300
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            list(handle.map(0, 10))
        with pytest.raises(OSError, match="Input/output error"):
            handle.pread(1, 0)
        with pytest.raises(OSError, match="not permitted"):
            handle.flush()


def test_bad_replies() -> None:
    def read(handle: NbdHandle) -> bytes:
        return handle.pread(100, 0)

    at = struct.Struct(">Q").pack
    for answer in (
        lambda request, _: b"nonsense that is long enough",
        lambda request, _: simple(request[2] + 1),
        always(DATA, at(0) + b"x" * 101),
        always(DATA, at(1) + b"x" * 100),
        always(DATA, at(2**64 - 1) + b"x" * 100),
        always(DATA, at(0) + b"x" * 99),
        always(DATA, at(0)),
        always(HOLE, at(0) + b"\xff\xff\xff\xff"),
        always(HOLE, at(0) + b"\0\0\0\0", done=False),
        always(HOLE, b""),
        always(STATUS, bytes(12)),
        always(NONE),
        always(NONE, done=False),
        always(3, b"x"),
        always(ERROR, b""),
    ):
        broken(read, answer)


def test_bad_replies_without_data() -> None:
    for answer in (always(DATA, bytes(9)), always(NONE, b"x"), always(NONE, done=False)):
        broken(lambda handle: handle.flush(), answer)


def test_bad_maps() -> None:
    def look(handle: NbdHandle) -> object:
        return list(handle.map(0, 100))

    ours = struct.pack(">I", CONTEXT)
    for answer in (
        always(STATUS, ours),
        always(STATUS, ours + bytes(8)),
        always(STATUS, ours + bytes(9)),
        always(STATUS, struct.pack(">III", CONTEXT + 1, 100, 0)),
        always(STATUS, b"x" * (MAX_REPLY + 1)),
        always(NONE),
        always(NONE, done=False),
        always(DATA, bytes(12)),
        lambda request, _: chunk(request[2] + 1, NONE),
    ):
        broken(look, answer)


def test_promises_cost_nothing() -> None:
    """A length of 4 GiB is refused before anything is made for it."""
    head = struct.pack(">IHHQI", 0x668E33EF, 1, DATA, 1, 2**32 - 1) + bytes(8)
    broken(lambda handle: handle.pread(100, 0), lambda *_: head)


def test_hang_up() -> None:
    with served(lambda *_: None) as handle, pytest.raises(ConnectionError, match="hung up"):
        handle.pread(1, 0)


def test_interrupt() -> None:
    waits = threading.Event()

    def answer(*_: object) -> bytes:
        waits.set()
        return b""

    def interrupt() -> None:
        waits.wait(20)
        handle.interrupt()

    with served(answer) as handle:
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(OSError, match="hung up"):
            handle.pread(1, 0)
        thread.join()


@settings(max_examples=60, deadline=None)
@given(noise=st.binary(max_size=200), keep=st.integers(0, 200))
def test_noise(noise: bytes, keep: int) -> None:
    """Whatever follows a good or a cut negotiation: an answer or an `OSError`."""
    ours, theirs = socket.socketpair()
    with closing(theirs):
        theirs.sendall(negotiation()[:keep] + noise)
        theirs.shutdown(socket.SHUT_WR)
        try:
            with NbdHandle(ours) as handle:
                assert len(handle.pread(10, 0)) == 10
        except OSError:
            pass
