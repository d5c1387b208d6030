"""What a volume's document may not say: which error, in which words, in which order, and where."""

from __future__ import annotations

import pytest

from storaged.errors import ConfigUnsupported, InvalidArgument, Overflow, StorageError, XMLError
from storaged.volxml import CapacityRule, parse_volume


def volume(
    target: str = "",
    *,
    name: str = "<name>v</name>",
    capacity: str = "<capacity>1</capacity>",
    rest: str = "",
    kind: str = "file",
) -> str:
    return f"<volume type='{kind}'>{name}{capacity}<target>{target}</target>{rest}</volume>"


def luks(text: str, attributes: str = "format='luks'") -> str:
    return volume(f"<encryption {attributes}>{text}</encryption>")


CIPHER = "<cipher name='aes' size='256'/>"
VALUE = "Invalid value for attribute"
RULES: list[tuple[str, type[StorageError], str]] = [
    ("<vol/>", XMLError, "expecting root element of 'volume', not 'vol'"),
    (volume(name=""), XMLError, "missing volume name element"),
    (volume(name="<name/>"), XMLError, "missing volume name element"),
    (volume(kind="tape"), ConfigUnsupported, "unknown volume type 'tape'"),
    (volume(capacity=""), XMLError, "missing capacity element"),
    (volume(capacity="<capacity/>"), XMLError, "missing capacity element"),
    *(
        (volume(capacity=f"<capacity>{text}</capacity>"), XMLError, "malformed capacity element")
        for text in ("-1", "1k", "1.5", "5 ", "0x10", "18446744073709551616", "\u0661")
    ),
    (volume(rest="<allocation>half</allocation>"), XMLError, "malformed capacity element"),
    *(
        (
            volume(capacity=f"<capacity unit='{unit}'>1</capacity>"),
            InvalidArgument,
            f"unknown suffix '{unit}'",
        )
        for unit in ("Z", "ki", "kibi", " k", "bits")
    ),
    (
        volume(capacity="<capacity unit='EiB'>8</capacity>"),
        Overflow,
        "value too large: 8EiB",
    ),
    (
        volume(rest="<allocation>9223372036854775808</allocation>"),
        Overflow,
        "value too large: 9223372036854775808",
    ),
    *(
        (
            volume(f"<format type='{kind}'/>"),
            ConfigUnsupported,
            f"unknown volume format type {kind}",
        )
        for kind in ("none", "luks", "vhdx", "auto", "unknown", "linux")
    ),
    (
        volume(rest="<backingStore><path>/b</path><format type='none'/></backingStore>"),
        ConfigUnsupported,
        "unknown volume format type none",
    ),
    (
        volume("<permissions><mode>778</mode></permissions>"),
        XMLError,
        "malformed octal mode",
    ),
    (
        volume(
            rest="<backingStore><path>/b</path><permissions><group>x</group></permissions>"
            "</backingStore>"
        ),
        XMLError,
        "malformed group element",
    ),
    *(
        (
            volume(f"<compat>{text}</compat>"),
            XMLError,
            "forbidden characters in 'compat' attribute",
        )
        for text in ("1", "1.", ".1", "1.1.1", "a.b", "1.1 ", "99999999999999999999.1")
    ),
    (volume("<features><v4/></features>"), ConfigUnsupported, "unsupported feature v4"),
    (
        volume("<clusterSize>big</clusterSize>"),
        XMLError,
        "Invalid value 'big' for element or attribute './target/clusterSize'",
    ),
    (volume("<clusterSize unit='q'>1</clusterSize>"), InvalidArgument, "unknown suffix 'q'"),
    (volume("<clusterSize unit='E'>16</clusterSize>"), Overflow, "value too large: 16E"),
    (luks("", ""), XMLError, "unknown volume encryption format"),
    (luks("", "format=''"), XMLError, "unknown volume encryption format"),
    (
        luks("", "format='rot13'"),
        ConfigUnsupported,
        "unknown volume encryption format type rot13",
    ),
    (
        luks("", "format='luks' engine='kernel'"),
        XMLError,
        f"{VALUE} 'engine' in element 'encryption': 'kernel'.",
    ),
    (luks("<secret usage='u'/>"), XMLError, "unknown volume encryption secret type"),
    (
        luks("<secret type='pin' usage='u'/>"),
        ConfigUnsupported,
        "unknown volume encryption secret type pin",
    ),
    (luks("<secret type='passphrase'/>"), XMLError, "missing secret uuid or usage attribute"),
    (
        luks("<secret type='passphrase' uuid='1' usage='2'/>"),
        XMLError,
        "either secret uuid or usage expected",
    ),
    (luks("<secret type='passphrase' uuid='1'/>"), XMLError, "invalid secret uuid '1'"),
    (luks("<cipher size='1'/>"), XMLError, "cipher info missing 'name' attribute"),
    (
        luks("<cipher name='aes'/>"),
        XMLError,
        "Missing required attribute 'size' in element 'cipher'",
    ),
    (
        luks("<cipher name='aes' size='0x100'/>"),
        XMLError,
        f"{VALUE} 'size' in element 'cipher': '0x100'. Expected non-negative integer value",
    ),
    (luks("<ivgen name='p'/>"), XMLError, "ivgen element found, but cipher is missing"),
    (luks(CIPHER + "<ivgen/>"), XMLError, "missing ivgen info name string"),
]


@pytest.mark.parametrize(("document", "kind", "detail"), RULES)
def test_rule(document: str, kind: type[StorageError], detail: str) -> None:
    with pytest.raises(StorageError) as caught:
        parse_volume(document, "dir")
    assert type(caught.value) is kind
    assert caught.value.detail == detail
    assert "line 1" in (caught.value.advice or "")


BACKING = "<backingStore><path>/b</path><format type='q'/></backingStore>"
#: The parts of a volume in the order in which they are checked, each broken, and what is said.
IN_ORDER = [
    ({"name": ""}, "missing volume name element"),
    ({"kind": "tape"}, "unknown volume type 'tape'"),
    ({"rest": BACKING}, "unknown volume format type q"),
    ({"capacity": "<capacity>x</capacity>"}, "malformed capacity element"),
    ({"target": "<format type='r'/>"}, "unknown volume format type r"),
    ({"target": "<permissions><mode>9</mode></permissions>"}, "malformed octal mode"),
    ({"target": "<encryption/>"}, "unknown volume encryption format"),
    ({"target": "<compat>x</compat>"}, "forbidden characters in 'compat' attribute"),
    ({"target": "<clusterSize unit='q'>1</clusterSize>"}, "unknown suffix 'q'"),
    ({"target": "<features><v4/></features>"}, "unsupported feature v4"),
]


@pytest.mark.parametrize("first", range(len(IN_ORDER)))
def test_first_broken_rule_is_reported(first: int) -> None:
    broken: dict[str, str] = {}
    for change, _ in reversed(IN_ORDER[first:]):
        for key, value in change.items():
            broken[key] = broken.get(key, "") + value if key == "target" else value
    with pytest.raises(StorageError) as caught:
        parse_volume(volume(**broken), "dir")
    assert caught.value.detail == IN_ORDER[first][1]


def test_malformed_number_is_reported_before_its_unit() -> None:
    with pytest.raises(XMLError, match="malformed capacity element"):
        parse_volume(volume(capacity="<capacity unit='q'>x</capacity>"), "dir")


@pytest.mark.parametrize("rule", [CapacityRule.REQUIRED, CapacityRule.OPTIONAL])
def test_capacity_is_wanted(rule: CapacityRule) -> None:
    with pytest.raises(XMLError, match="missing capacity element"):
        parse_volume(volume(capacity=""), "dir", capacity=rule)


def test_partitions_have_their_own_formats() -> None:
    with pytest.raises(ConfigUnsupported, match="unknown volume format type qcow2"):
        parse_volume(volume("<format type='qcow2'/>"), "disk")


def test_place_of_an_error() -> None:
    text = "<volume>\n<name>v</name>\n<capacity>1</capacity>\n<target>\n<permissions>\n<owner/>\n"
    with pytest.raises(XMLError) as caught:
        parse_volume(text + "</permissions></target></volume>", "dir")
    assert (caught.value.element, caught.value.line) == ("target/permissions/owner", 6)
    text = "<volume>\n<name>v</name>\n<capacity unit='x'>1</capacity></volume>"
    with pytest.raises(InvalidArgument) as wrong:
        parse_volume(text, "dir")
    assert wrong.value.advice == "See <capacity> in line 3."
