"""Any pattern of writes that QEMU makes is read as QEMU reads it."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.formats.qcow2_read import Qcow2Disk
from tests.formats import qemu
from tests.formats.qcow2_content import assert_same, opened, read_only

SECTOR = 512
SECTORS = 1500

OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["write -P {}", "write -P {}", "write -z", "write -z -u", "discard"]),
        st.integers(0, SECTORS - 1),
        st.integers(1, 300),
    ),
    max_size=25,
)
OPTIONS = st.sampled_from(
    [
        ("compat=0.10", "cluster_size=512"),
        ("compat=1.1", "cluster_size=1k", "lazy_refcounts=on"),
        ("compat=1.1", "cluster_size=8k", "refcount_bits=1"),
        ("compat=1.1", "cluster_size=64k"),
        ("extended_l2=on", "cluster_size=16k"),
        ("extended_l2=on", "cluster_size=64k"),
    ]
)


def commands(operations: list[tuple[str, int, int]]) -> list[str]:
    return [
        f"{command.format(number % 255 + 1)} {first * SECTOR} "
        f"{min(count, SECTORS - first) * SECTOR}"
        for number, (command, first, count) in enumerate(operations)
    ]


@given(layers=st.lists(st.tuples(OPTIONS, OPERATIONS), min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_like_qemu(layers: list[tuple[tuple[str, ...], list[tuple[str, int, int]]]]) -> None:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        below: Path | None = None
        backing: Qcow2Disk | None = None
        for number, (options, operations) in enumerate(layers):
            path = Path(folder, f"layer{number}")
            chain = (f"backing_file={below}", "backing_fmt=qcow2") if below else ()
            qemu.create(path, SECTORS * SECTOR, *options, *chain)
            if operations:
                qemu.io(path, *commands(operations))
            if number < len(layers) - 1:
                backing = Qcow2Disk(read_only(path), backing=backing)
                below = path
        if backing is not None:
            stack.callback(backing.close)
        with opened(path, backing=backing) as disk:
            assert_same(path, disk)
