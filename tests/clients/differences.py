"""Where storaged answers something else than libvirt's daemon, and why it does.

Each line was decided: a difference that is not in this table fails the test that meets it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Difference:
    """One kind of answers that are wanted to differ.

    :param where: a pattern of the call or command, as the suites name them.
    :param theirs: a pattern of libvirt's whole answer, as text.
    :param ours: a pattern of ours.
    """

    where: str
    theirs: str
    ours: str
    why: str

    def covers(self, where: str, theirs: object, ours: object) -> bool:
        return all(
            re.fullmatch(pattern, str(text), re.DOTALL) is not None
            for pattern, text in (
                (self.where, where),
                (self.theirs, theirs),
                (self.ours, ours),
            )
        )


@dataclass(frozen=True)
class Mask:
    """What is taken out of both answers, as text, before they are compared."""

    where: str
    pattern: str
    why: str

    def apply(self, where: str, text: str) -> str:
        if re.fullmatch(self.where, where, re.DOTALL) is None:
            return text
        return re.sub(self.pattern, "", text)


#: Commands and calls about images that are not raw.
_IMAGES = (
    r"(.*images|formats|options|volumes|disks|clones|capacity_nothing|left_alone|restart|perl"
    r"|virt_volume|\d+ virt_volume|random)\b.*"
)
_MORE_TYPES = "further pool types come one by one; until then libvirt's text says what is missing"

DIFFERENCES: tuple[Difference, ...] = (
    Difference(
        r"the connection: \d+ (net|iface|nwfilter|nodedev)-list|drivers_that_are_not_here: .*",
        r".*not supported by the connection driver.*|3|19|22|26|33",
        r".*(network|interface|nwfilter|nodedev) connection not open.*|1|7",
        "as libvirt's daemon of storage alone answers; the one with all drivers, beside which "
        "we run, says that the driver has no such function",
    ),
    Difference(
        r"unserved: procedure \d+\[\d\]|connection: (networks|devices)",
        r"3|19|22|26|33|False",
        r"1|7|True",
        "the same, by packets and by virt-manager's library",
    ),
    Difference(
        r"unserved: procedure \d+\[0\]",
        r"8",
        r"3",
        "libvirt looks at the arguments of what it does not have",
    ),
    Difference(
        r"unserved: procedure (159|278)",
        r"0",
        r"\(3, 20\)",
        "libvirt answers with an empty list of what belongs to no domain",
    ),
    Difference(
        r"options: bad-clusters.*",
        r".*Child process.*|1",
        r".*cluster size must be a power of two.*|67",
        "no program is run: what cannot be done natively is refused in our words",
    ),
    Difference(
        r"transfers: \d+ vol-info sparse .*",
        r".*Capacity: +1048576 bytes.*",
        r".*Capacity: +4194304 bytes.*",
        "a hole never makes a volume shorter",
    ),
    Difference(
        r"finding_sources: .*|documents: no source.*|pools: sources of .*",
        r".*",
        r".*missing backend for pool type .*|1|18",
        _MORE_TYPES,
    ),
    Difference(
        r".*",
        r".*failed to validate against schema: .*",
        r".*failed to validate against schema: .*",
        "the first complaint of the validator, with no path of a file that users cannot change",
    ),
    Difference(
        r"validated volumes: .*|odd_documents: (validated|names).*",
        r".*unsupported flags \(0x4\) in function virStorageVolDefParseXML.*|\[.*\]",
        r".*",
        "libvirt 9.0 refuses the flag that it made for this; from 11.3 on it works as here",
    ),
    Difference(
        _IMAGES,
        r"\d+",
        r"\d+",
        "images are made without writing zeros, and take less space",
    ),
    Difference(
        r"random: .*",
        r".*Child process .*|1",
        r"\[(8|67|84), .*|8|67|84|.*(cannot be|unsupported configuration: ).*",
        "no program is run: what cannot be done natively is refused in our words",
    ),
    Difference(
        r"random: .*",
        r".*",
        r".*(metadata preallocation is not|: a clone of|directory volume .* cannot be cloned).*",
        "a clone keeps the format of its source, and is one of data",
    ),
    Difference(
        r"random: .*",
        r".*",
        r".*contains a control character.*",
        "a listing of such a name deceives",
    ),
    Difference(
        r"random: \d+ clone .*",
        r".*No space left on device",
        r".*No space left on device",
        "the space is missed where the data are written",
    ),
    Difference(
        r"random: .* pool.XMLDesc .*",
        r".*<capacity .*",
        r".*<capacity unit='bytes'>0</capacity>.*",
        "sizes of a stopped pool are 0, libvirt's are those it had",
    ),
    Difference(
        r"random: \d+ (volume.wipe|upload|download).*",
        r".*Is a directory.*|.*Unexpected message type.*|1|38|38",
        r".*[Ii]s a directory.*|.*'trim' algorithm.*|38|84|74",
        "said before anything is tried",
    ),
    Difference(
        r"sizes of images: .*",
        r".*Child process.*|.*successfully changed.*",
        r".*(exceeds \d+ bytes|cannot be resized).*",
        "no program is run: what cannot be done natively is refused in our words",
    ),
    Difference(
        r"formats: iso\b.*",
        r".*<format type='iso'/>.*|iso",
        r".*<format type='raw'/>.*|raw",
        "an empty file is no ISO image; libvirt repeats what was asked for until it looks",
    ),
    Difference(
        r"formats: vpc\b.*",
        r".*<capacity unit='bytes'>4212736<.*|4212736",
        r".*<capacity unit='bytes'>4194304<.*|4194304",
        "a volume has the capacity that was asked for, not one that old disks could have",
    ),
    Difference(
        r"random: .*",
        r".*<capacity unit='bytes'>(\d+)</capacity>\s*<allocation unit='bytes'>\1<.*",
        r".*<format type='qcow2'/>.*",
        "a clone is as large as it was asked to be; libvirt's of an empty source is empty",
    ),
    Difference(
        r"wiping: .* (nnsa|random)",
        r".*Cannot find 'scrub'.*",
        r"Vol w wiped\n",
        "patterns are written natively",
    ),
    Difference(
        r"restart: stopped",
        r"1",
        r"0",
        "a stopped pool stays stopped, although its directory is there",
    ),
    Difference(
        r".*\[1\]",
        r"0|5",
        r"18",
        "all that goes wrong at storage is of the storage domain; clients look at the code",
    ),
)

MASKS = (
    Mask(
        r".*",
        r" *<(clusterSize unit='B'>65536</clusterSize|features/|compat>0.10</compat)>\n",
        "a new image is described as a refresh describes it",
    ),
    Mask(
        r"perl: .*",
        r"\"allocation\":\d+",
        "images are made without writing zeros, and take less space",
    ),
    Mask(
        _IMAGES,
        r"<(allocation|available|physical) unit='bytes'>\d+</(allocation|available|physical)>",
        "images are made without writing zeros, and take less space",
    ),
    Mask(
        r".*images: .*|read only: .*|.*\bpool-(info|dumpxml|list)\b.*|afterwards: .*",
        r"(Allocation|Available): +[\d.]+( [KM]i?B)?|<(allocation|available) .*>"
        r"| +[\d.]+ (MiB|KiB|B)",
        "the same, in virsh's words; all pools of the tests lie in one file system",
    ),
    Mask(
        r".*apabilities.*",
        r"supported='(yes|no)'|<value>(fs|netfs|logical|iscsi|scsi|mpath|disk)</value>\n *",
        _MORE_TYPES,
    ),
    Mask(
        r".*apabilities.*",
        r"\s+",
        "where libvirt leaves out a type, it leaves out its line",
    ),
)


def difference(where: str, theirs: object, ours: object) -> Difference | None:
    """Return the line of the table that explains two answers, if there is one."""
    for line in DIFFERENCES:
        if line.covers(where, theirs, ours):
            return line
    return None


def compare(where: str, theirs: Any, ours: Any) -> None:
    """Fail with all differences that nobody wanted between two answers.

    Mappings, and sequences of one length, are compared part by part, so that a difference covers
    no more than it should.
    """
    unwanted = [
        f"{place}\n{_shown(their, our)}"
        for place, their, our in _parts(where, theirs, ours)
        if their != our
        and _masked(place, their) != _masked(place, our)
        and difference(place, their, our) is None
    ]
    assert not unwanted, "answers differ:\n" + "\n".join(unwanted)


def _parts(where: str, theirs: Any, ours: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name in {**theirs, **ours}:
            yield from _parts(f"{where}: {name}", theirs.get(name), ours.get(name))
    elif _sequence(theirs) and _sequence(ours) and len(theirs) == len(ours):
        for number, (their, our) in enumerate(zip(theirs, ours, strict=True)):
            yield from _parts(f"{where}[{number}]", their, our)
    else:
        yield where, theirs, ours


def _sequence(value: object) -> bool:
    return isinstance(value, (list, tuple))


def _masked(where: str, value: object) -> str:
    text = str(value)
    for mask in MASKS:
        text = mask.apply(where, text)
    return text


def _shown(theirs: object, ours: object) -> str:
    their, our = str(theirs).splitlines(), str(ours).splitlines()
    if min(len(their), len(our)) > 3:
        return "\n".join(difflib.unified_diff(their, our, "libvirtd", "storaged", lineterm="", n=1))
    return f"  libvirtd: {theirs!r}\n  storaged: {ours!r}"
