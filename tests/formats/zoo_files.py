"""The zoo in a directory, with what only a directory can hold: links, sockets, pipes, odd names."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from tests.formats.zoo import whole
from tests.formats.zoo_qcow2 import sound
from tests.formats.zoo_references import chain

#: Names that tools take for more than names. Each stands for a small sound qcow2.
NAMES = (
    b'json:{"driver":"null-co"}', b"file:x", b"-f", b"a,b=c", b"nbd:1:2", b"vol with space",
    "uni\u202egpj.qcow2".encode(), b"$(id)", b"`id`", b"%s%n", b"a'b\"c", b"&amp;<x>", b"\\",
    "NFC-\u00e9".encode(), "NFD-e\u0301".encode(), b"Case", b"case", b"a" * 255, b"...", b".hidden",
    b"~", b"*", b"?", b"#", b"a@b", b"name.part", b"vol\nnl", b"tab\tbed", b"\x7f",
)  # fmt: skip
#: Those that a volume cannot have, as in libvirt: other control characters.
UNLISTED = (b"esc\x1b[2J", b"bel\a")
NOT_UTF8 = (b"nonutf8\xff\xfename",)
CHAIN = 300
_PIECE = 4096


def populate(directory: Path) -> int:
    """Fill a directory with all regular files of the zoo, sparse; return how many they are."""
    for case in whole():
        write_sparse(directory / case.name, case.data)
    image = bytes(sound(1 << 20, cluster_size=512))
    for odd in (*NAMES, *UNLISTED, *NOT_UTF8):
        write_sparse(directory / os.fsdecode(odd), image)
    for name, data in chain(CHAIN + 1):
        write_sparse(directory / name, data)
    with (directory / "r-sparse").open("wb") as file:
        file.truncate(8 << 40)
    return len(list(directory.iterdir()))


def populate_specials(directory: Path) -> None:
    """Add what is no regular file."""
    os.mkfifo(directory / "fifo")
    (directory / "dir").mkdir()
    (directory / "link-abs").symlink_to("/etc/passwd")
    (directory / "link-loop").symlink_to("link-loop")
    (directory / "link-zero").symlink_to("/dev/zero")
    (directory / "link-dangling").symlink_to("nowhere")
    (directory / "link-fifo").symlink_to("fifo")
    (directory / "link-dir").symlink_to("/etc")
    (directory / "link-inside").symlink_to("q-deep-ok")
    (directory / "link-proc").symlink_to("/proc/self/mem")
    (directory / "no-access").touch(mode=0)
    with socket.socket(socket.AF_UNIX) as server:
        # a socket's address is shorter than many a directory
        old = os.open(".", os.O_RDONLY)
        try:
            os.chdir(directory)
            server.bind("sock")
        finally:
            os.fchdir(old)
            os.close(old)


def write_sparse(path: Path, data: bytes) -> None:
    """Write a file with holes where it is zeros."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.ftruncate(fd, len(data))
        for offset in range(0, len(data), _PIECE):
            piece = data[offset : offset + _PIECE]
            if piece.count(0) < len(piece):
                os.pwrite(fd, piece, offset)
    finally:
        os.close(fd)
