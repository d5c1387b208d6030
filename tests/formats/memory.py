"""Handles in memory: one counts what is read, one keeps a log of all writes and flushes."""

from __future__ import annotations

from collections.abc import Iterator

from storaged.formats.handle import Bytes, Extent


class MemoryHandle:
    """An image in memory that remembers which stretches were read."""

    def __init__(self, data: bytes = b"", *, claims: int | None = None) -> None:
        self.data = bytearray(data)
        self.claims = claims
        self.reads: list[tuple[int, int]] = []

    def size(self) -> int:
        return len(self.data) if self.claims is None else self.claims

    def pread(self, length: int, offset: int) -> bytes:
        assert length >= 0
        assert offset >= 0
        self.reads.append((offset, length))
        return bytes(self.data[offset : offset + length])

    def pwrite(self, data: Bytes, offset: int) -> None:
        if len(self.data) < offset:
            self.truncate(offset)
        self.data[offset : offset + len(data)] = data

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self.pwrite(bytes(length), offset)

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length, data=True)

    def truncate(self, size: int) -> None:
        del self.data[size:]
        self.data += bytes(size - len(self.data))

    def flush(self) -> None:
        pass

    def fileno(self) -> int | None:
        return None

    def close(self) -> None:
        pass


class LoggingHandle(MemoryHandle):
    """Keeps every write, in groups that a flush ends."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.groups: list[list[tuple[int, bytes]]] = [[]]

    def pwrite(self, data: Bytes, offset: int) -> None:
        self.groups[-1].append((offset, bytes(data)))
        super().pwrite(data, offset)

    def flush(self) -> None:
        self.groups.append([])
