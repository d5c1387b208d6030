"""LUKS containers made and opened here: cryptsetup, QEMU, power cuts and hostile headers."""

from __future__ import annotations

import hashlib
import subprocess
import time
import traceback
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.formats import luks, luks_header
from storaged.formats.errors import CorruptImage, FormatError, UnsupportedFormat
from storaged.formats.handle import Extent
from storaged.formats.luks_create import create
from storaged.formats.luks_slots import add_key, remove_key
from storaged.formats.luks_volume import LuksHandle, WrongPassphrase, resize, unlock
from storaged.formats.probe import probe
from tests.formats import cryptsetup, qemu, qemu_luks
from tests.formats.memory import LoggingHandle, MemoryHandle

MIB = 1 << 20
WORD = b"word"
PAYLOAD = 2_068_480


def container(capacity: int = MIB, *, mode: str = "xts-plain64", key_bytes: int = 64) -> bytes:
    handle = MemoryHandle()
    create(handle, capacity, WORD, mode=mode, key_bytes=key_bytes, iterations=1000)
    return bytes(handle.data)


SOUND = container(64 << 10)


def noise(length: int, seed: int = 0) -> bytes:
    return hashlib.shake_128(seed.to_bytes(4, "big")).digest(length)


def opens(path: Path, passphrase: bytes) -> bool:
    """Whether cryptsetup opens a container with a passphrase."""
    command = ["cryptsetup", "open", "--test-passphrase", "--key-file=-", str(path)]
    done = subprocess.run(command, input=passphrase, capture_output=True, timeout=60)
    assert done.returncode in (0, 2), done.stderr
    return done.returncode == 0


@pytest.mark.slow
@cryptsetup.needed
@pytest.mark.parametrize(
    ("mode", "key_bytes", "hash", "payload"),
    [
        ("xts-plain64", 64, "sha256", 4040),
        ("xts-plain64", 32, "sha512", 2056),
        ("cbc-essiv:sha256", 32, "sha1", 2056),
        ("cbc-plain64", 16, "sha256", 1032),
    ],
)
def test_cryptsetup_and_qemu_open_it(
    tmp_path: Path, mode: str, key_bytes: int, hash: str, payload: int
) -> None:
    path = tmp_path / "image"
    data = b"\x5a" * MIB
    with qemu.open_native(path) as handle:
        plain = create(
            handle, 8 * MIB, WORD, mode=mode, key_bytes=key_bytes, hash=hash, iterations=1500
        )
        assert plain.size() == 8 * MIB
        plain.pwrite(data, 4 * MIB + 100)
        plain.write_zeroes(0, MIB + 1)
    dump = qemu.run("cryptsetup", "luksDump", path)
    facts = (
        f"Payload offset:\t{payload}",
        f"Cipher mode:   \t{mode}",
        f"MK bits:       \t{8 * key_bytes}",
        "Iterations:         \t1500",
    )
    for fact in facts:
        assert fact in dump
    assert dump.count("DISABLED") == 7
    assert opens(path, WORD)
    assert not opens(path, b"other")
    qemu_luks.io(path, "read -P 0 0 1048577", f"read -P 0x5a {4 * MIB + 100} 1M")
    assert path.stat().st_size == payload * 512 + 8 * MIB
    assert path.stat().st_blocks * 512 < 6 * MIB  # what was not written takes no space


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("cipher-alg=aes-128", "hash-alg=sha512"),
        ("cipher-alg=aes-256", "cipher-mode=cbc", "ivgen-alg=essiv", "ivgen-hash-alg=sha256"),
        ("cipher-mode=cbc", "ivgen-alg=plain64", "hash-alg=sha1"),
        ("cipher-mode=xts", "ivgen-alg=plain"),
    ],
)
def test_what_qemu_makes_is_read(tmp_path: Path, options: tuple[str, ...]) -> None:
    path = qemu_luks.create(tmp_path / "image", 4 * MIB, *options)
    qemu_luks.io(path, "write -P 0x11 0 1M", "write -P 0x22 1M 512", "write -P 0x33 4193792 512")
    with qemu.open_native(path) as handle:
        plain = unlock(handle, WORD)
        assert plain.size() == 4 * MIB == probe(handle).capacity
        assert plain.pread(MIB, 0) == b"\x11" * MIB
        assert plain.pread(2, MIB + 510) == b"\x22\x22"
        assert plain.pread(1000, 4 * MIB - 512) == b"\x33" * 512
        plain.pwrite(b"\x44" * 1000, MIB - 500)
    qemu_luks.io(path, f"read -P 0x44 {MIB - 500} 1000", f"read -P 0x22 {MIB + 500} 12")


@pytest.mark.slow
@cryptsetup.needed
@pytest.mark.parametrize(
    "options",
    [(), ("--cipher", "aes-cbc-essiv:sha256"), ("--cipher", "aes-cbc-plain64", "--hash", "sha1")],
)
def test_what_cryptsetup_makes_is_read(tmp_path: Path, options: tuple[str, ...]) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(8 * MIB))
    subprocess.run(
        ["cryptsetup", "luksFormat", "--batch-mode", "--type", "luks1",
         "--pbkdf-force-iterations", "1000", *options, str(path), "-"],
        input=WORD, check=True,
    )  # fmt: skip
    qemu_luks.io(path, "write -P 0x77 4096 64k")
    with qemu.open_native(path) as handle:
        assert unlock(handle, WORD).pread(65536, 4096) == b"\x77" * 65536
        assert add_key(handle, WORD, b"second", iterations=1000) == 1
    assert opens(path, WORD)
    assert opens(path, b"second")


@pytest.mark.slow
@pytest.mark.parametrize("size", [MIB, 1 << 30, 2 << 40])
def test_sizes(tmp_path: Path, size: int) -> None:
    with qemu.open_native(tmp_path / "image") as handle:
        create(handle, size, WORD, iterations=1000)
        info = probe(handle)
        assert (info.capacity, info.encryption, info.state) == (size, "luks", "ok")
        assert unlock(handle, WORD).size() == size
        theirs = qemu_luks.create(tmp_path / "theirs", size)
        assert handle.size() == theirs.stat().st_size


def test_iterations_take_about_as_long_as_asked() -> None:
    handle = MemoryHandle()
    begin = time.process_time()
    create(handle, 512, WORD, unlock_time=60)
    assert time.process_time() - begin < 5
    slot = luks_header.read_container(handle).slots[0]
    assert slot.iterations >= 100_000


def test_the_header_comes_last() -> None:
    handle = LoggingHandle(b"")
    create(handle, MIB, WORD, iterations=1000)
    (writes,) = handle.groups
    # One write of zeros over what was there, the key material, the header.
    assert [offset for offset, _ in writes] == [0, 4096, 0]
    assert not any(writes[0][1])


def test_an_older_container_does_not_outlive() -> None:
    handle = MemoryHandle(SOUND)
    add_key(handle, WORD, b"second", iterations=1000)
    create(handle, MIB, b"new", iterations=1000)
    assert not any(handle.data[600:4096])
    assert not any(handle.data[4096 + 256000 : PAYLOAD])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"passphrase": b""}, "empty"),
        ({"capacity": -1}, "-1 bytes"),
        ({"capacity": 2**63}, "bytes"),
        ({"iterations": 999}, "999"),
        ({"iterations": 2**32}, "iterations"),
        ({"hash": "md5"}, "md5"),
        ({"cipher": "twofish"}, "twofish"),
        ({"key_bytes": 20}, "20 bytes"),
    ],
)
def test_parameters_that_luks_does_not_allow(change: dict[str, object], word: str) -> None:
    handle = MemoryHandle(b"precious")
    arguments = {"capacity": MIB, "passphrase": WORD, "iterations": 1000} | change
    with pytest.raises(FormatError, match=word):
        create(handle, **arguments)  # type: ignore[arg-type]
    assert handle.data == b"precious"


def test_nothing_tells_a_passphrase() -> None:
    secret = b"correct horse"
    handle = MemoryHandle(SOUND)
    with pytest.raises(WrongPassphrase) as caught:
        unlock(handle, secret)
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert "horse" not in told
    create(handle, 512, secret, iterations=1000)
    plain = unlock(handle, secret)
    assert secret not in handle.data
    assert "horse" not in repr(vars(plain)) + repr(plain)
    cipher = plain._cipher
    assert cipher is not None
    plain.close()
    assert not any(cipher._key)
    with pytest.raises(OSError, match="Bad file descriptor"):
        plain.pread(1, 0)
    plain.close()


CAPACITY = 3000 * 512
_write = st.tuples(
    st.integers(0, CAPACITY - 1) | st.integers(0, 2000),
    st.integers(1, 3000) | st.integers(1, 400_000),
    st.booleans(),
)


@settings(max_examples=20, deadline=None)
@given(writes=st.lists(_write, max_size=6), reads=st.lists(_write, max_size=4))
def test_is_a_disk(writes: list[tuple[int, int, bool]], reads: list[tuple[int, int, bool]]) -> None:
    """Any writes and zeros, aligned or not, read back as on a plain disk."""
    handle = MemoryHandle(SOUND)
    plain, model = unlock(handle, WORD), bytearray(CAPACITY)
    plain.truncate(CAPACITY)
    plain.write_zeroes(0, CAPACITY)
    for number, (offset, length, zeros) in enumerate(writes):
        length = min(length, CAPACITY - offset)
        data = bytes(length) if zeros else noise(length, number)
        if zeros:
            plain.write_zeroes(offset, length)
        else:
            plain.pwrite(memoryview(data), offset)
        model[offset : offset + length] = data
    assert plain.pread(CAPACITY + 5, 0) == model
    for offset, length, _ in reads:
        assert plain.pread(length, offset) == model[offset : offset + length]


def test_length_and_map() -> None:
    handle = MemoryHandle(SOUND)
    plain = unlock(handle, WORD)
    assert isinstance(plain, LuksHandle)
    assert plain.size() == 64 << 10
    assert plain.fileno() is None
    assert list(plain.map(100, 1 << 30)) == [Extent(100, (64 << 10) - 100, data=True)]
    assert list(plain.map(64 << 10, 10)) == []
    plain.truncate(1000)
    assert (plain.size(), handle.size()) == (1024, PAYLOAD + 1024)
    plain.pwrite(b"end", 2000)
    assert plain.size() == 2048
    assert plain.pread(100, 2000) == b"end".ljust(48, b"\0")
    assert plain.pread(5, 4096) == b""
    handle.truncate(PAYLOAD + 700)  # by half a sector
    assert plain.size() == 512
    handle.truncate(100)
    assert plain.size() == 0
    assert plain.pread(5, 0) == b""


def test_resize_needs_no_passphrase() -> None:
    handle = MemoryHandle(SOUND)
    unlock(handle, WORD).pwrite(b"kept", 0)
    resize(handle, MIB + 1)
    plain = unlock(handle, WORD)
    assert (plain.size(), plain.pread(4, 0)) == (MIB + 512, b"kept")
    with pytest.raises(CorruptImage):
        resize(MemoryHandle(b"no container"), MIB)


def test_passphrases_come_and_go() -> None:
    handle = MemoryHandle(SOUND)
    words = [b"key %d" % number for number in range(7)]
    for number, word in enumerate(words):
        assert add_key(handle, WORD, word, iterations=1000) == number + 1
    with pytest.raises(FormatError, match="all key slots"):
        add_key(handle, WORD, b"ninth", iterations=1000)
    assert remove_key(handle, words[2]) == 3
    with pytest.raises(WrongPassphrase):
        unlock(handle, words[2])
    assert add_key(handle, words[6], b"again", iterations=1000) == 3
    for word in (WORD, *words[:2], *words[3:]):
        remove_key(handle, word)
    with pytest.raises(FormatError, match="last passphrase"):
        remove_key(handle, b"again")
    with pytest.raises(FormatError, match="empty"):
        add_key(handle, b"again", b"")
    with pytest.raises(FormatError, match="999 iterations"):
        add_key(handle, b"again", b"more", iterations=999)
    unlock(handle, b"again")


@pytest.mark.parametrize("removes", [False, True])
def test_a_crash_leaves_a_container_that_opens(removes: bool) -> None:
    """After every flush, with any part of the writes that followed it."""
    handle = MemoryHandle(SOUND)
    for word in range(5):
        add_key(handle, WORD, b"%d" % word, iterations=1000)
    before = bytes(handle.data)
    log = LoggingHandle(before)
    if removes:
        remove_key(log, b"4")
    else:
        assert add_key(log, WORD, b"new", iterations=1000) == 6  # its record crosses a sector's end
    disk = bytearray(before)
    for group in log.groups:
        for offset, data in group:
            torn = bytearray(disk)
            torn[offset : offset + len(data)] = data
            unlock(MemoryHandle(bytes(torn)), b"3")
            half = 512 - offset % 512
            torn[offset + half : offset + len(data)] = disk[offset + half : offset + len(data)]
            unlock(MemoryHandle(bytes(torn)), b"3")
            disk[offset : offset + len(data)] = data
    assert disk == log.data


@pytest.mark.parametrize(
    ("offset", "value", "kind", "word"),
    [
        (164, b"\xff" * 4, UnsupportedFormat, "4294968295 iterations"),
        (212, b"\xff" * 4, UnsupportedFormat, "iterations to try"),
        (212, bytes(4), CorruptImage, "no iterations"),
        (6, b"\0\2", UnsupportedFormat, "version 2"),
        (8, b"x" * 32, CorruptImage, "cipher or hash"),
        (8, b"serpent\0", UnsupportedFormat, "serpent"),
        (72, b"whirlpool\0", UnsupportedFormat, "whirlpool"),
        (104, bytes(4), CorruptImage, "sector 0"),
        (104, b"\xff" * 4, CorruptImage, "not in the file"),
        (108, b"\xff" * 4, CorruptImage, "key of 4294967295"),
        (252, b"\xff" * 4, CorruptImage, "stripes"),
        (248, b"\xff" * 4, CorruptImage, "slot 0 at sector"),
        (248, bytes(4), CorruptImage, "slot 0 at sector 0"),
        (256, b"\0\xac\x71\xf3" + bytes(36) + b"\0\0\0\x10\0\0\x0f\xa0", CorruptImage, "overlap"),
        (0, b"LUKZ", CorruptImage, "no LUKS header"),
    ],
)
def test_hostile_headers(
    offset: int, value: bytes, kind: type[FormatError], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is derived for them: they cost no time."""
    monkeypatch.setattr(luks_header, "derive", None)
    data = bytearray(SOUND)
    data[offset : offset + len(value)] = value
    with pytest.raises(kind, match=word):
        unlock(MemoryHandle(bytes(data)), WORD)


@settings(max_examples=120, deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, 591), st.integers(1, 255)), max_size=3),
    length=st.none() | st.integers(0, len(SOUND)),
)
def test_damaged_headers_give_format_errors(
    flips: list[tuple[int, int]], length: int | None
) -> None:
    data = bytearray(SOUND)
    for offset, mask in flips:
        data[offset] ^= mask
    handle = MemoryHandle(bytes(data[:length]))
    try:
        plain = unlock(handle, WORD, max_iterations=100_000)
    except FormatError as err:
        assert str(err).isprintable()  # noqa: PT017 (both ends are right)
    else:
        assert len(plain.pread(1 << 20, 0)) == plain.size()


def test_a_container_cut_in_its_key_material() -> None:
    data = bytearray(SOUND)
    data[104:108] = (4040).to_bytes(4, "big")
    handle = MemoryHandle(bytes(data[:100_000]), claims=len(data))
    with pytest.raises(CorruptImage, match="key material"):
        unlock(handle, WORD)


def test_names_used_here_are_the_specifications() -> None:
    header = luks.LuksHeader.unpack(SOUND)
    assert (header.payload_offset, header.key_bytes) == (4040, 64)
    slots = [luks.KeySlot.unpack(SOUND, 208 + 48 * number) for number in range(8)]
    assert [slot.key_material_offset for slot in slots] == [8 + 504 * n for n in range(8)]
