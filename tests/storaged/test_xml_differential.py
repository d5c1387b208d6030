"""The same documents through libvirt's own code: virsh with the driver that lives in its memory.

``test:///default`` starts no daemon and leaves nothing behind. It has no namespaces, prints sizes
of its own, and sets keys and paths of volumes itself; those are taken out before comparing.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from storaged.errors import StorageError
from storaged.model import Space
from storaged.poolxml import format_pool, parse_pool
from storaged.volxml import format_volume, parse_volume
from tests.storaged import test_poolxml, test_poolxml_rules, test_volxml, test_volxml_rules

VIRSH = shutil.which("virsh")
pytestmark = pytest.mark.skipif(
    VIRSH is None, reason="virsh is not installed (Debian: libvirt-clients)"
)

#: What libvirt prints of a pool of its test driver that was just defined.
SPACE = Space(107374182400, 0, 107374182400)

#: Where we say something else on purpose, with the reason.
POOLS_ON_PURPOSE = {
    "dir-owner-above-31-bits": "libvirt prints -2, which it cannot read",
}


def _virsh(*commands: str) -> tuple[str, str]:
    assert VIRSH is not None
    argv = [VIRSH, "-q", "-c", "test:///default", "; ".join(commands)]
    run = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    return run.stdout, run.stderr


def _error(stderr: str) -> str | None:
    """Return the reason of the first failure: virsh's second message, without its prefix."""
    messages = ("\n" + stderr.rstrip("\n")).split("\nerror: ")
    return messages[2] if len(messages) > 2 else None


def _libvirt_pool(document: str, name: str, folder: Path) -> str:
    file = folder / "pool.xml"
    file.write_text(document, encoding="utf-8")
    out, err = _virsh(f"pool-define {file}", f"pool-dumpxml {name}")
    return _error(err) or out[out.index("<pool") :].rstrip("\n")


def _our_pool(document: str) -> str:
    try:
        return format_pool(parse_pool(document), SPACE).rstrip("\n")
    except StorageError as err:
        return str(err)


def _libvirt_volume(document: str, name: str, folder: Path) -> str:
    file = folder / "volume.xml"
    file.write_text(document, encoding="utf-8")
    out, err = _virsh(f"vol-create default-pool {file}", f"vol-dumpxml {name} default-pool")
    return _error(err) or out[out.index("<volume") :].rstrip("\n")


def _our_volume(document: str, name: str) -> str:
    try:
        path = f"/default-pool/{name}"
        volume = replace(parse_volume(document, "dir"), key=path, path=path)
    except StorageError as err:
        return str(err)
    return format_volume(volume, "dir").rstrip("\n")


@pytest.mark.parametrize("case", sorted(test_poolxml.CASES.keys() - POOLS_ON_PURPOSE))
def test_pool(case: str, tmp_path: Path) -> None:
    kind, body, _ = test_poolxml.CASES[case]
    document = test_poolxml.given(kind, body)
    assert _our_pool(document) == _libvirt_pool(document, "vault", tmp_path)


REFUSED_POOLS = [document for document, _, _ in test_poolxml_rules.RULES]
REFUSED_POOLS += [document for document, _ in test_poolxml_rules.ORDER]


@pytest.mark.parametrize(
    "document", [text for text in REFUSED_POOLS if "xmlns" not in text and len(text) < 4096]
)
def test_refused_pool(document: str, tmp_path: Path) -> None:
    assert _our_pool(document) == _libvirt_pool(document, "n", tmp_path)


@pytest.mark.parametrize(
    "case", sorted(case for case, (kind, *_) in test_volxml.CASES.items() if kind == "dir")
)
def test_volume(case: str, tmp_path: Path) -> None:
    document = test_volxml.CASES[case][1]
    libvirt = _libvirt_volume(document, "web.img", tmp_path)
    if "Not enough free space" in libvirt:
        document = re.sub(r"unit='T'", "unit='M'", document)
        libvirt = _libvirt_volume(document, "web.img", tmp_path)
    assert _our_volume(document, "web.img") == libvirt


@pytest.mark.parametrize("document", [document for document, *_ in test_volxml_rules.RULES])
def test_refused_volume(document: str, tmp_path: Path) -> None:
    assert _our_volume(document, "v") == _libvirt_volume(document, "v", tmp_path)
