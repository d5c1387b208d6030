"""Errors on the wire: libvirt's three shapes, our own, and the way back."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged import errors
from storaged.errors import (
    BadArgument,
    CommandFailed,
    Domain,
    InvalidArgument,
    NoSuchPool,
    PoolBusy,
    StorageError,
    SystemFailure,
    VolumeExists,
    XMLError,
)
from storaged.rpc import errors as connection_errors
from storaged.rpc.errors import RPCError
from storaged.rpc.remoteerror import (
    RemoteError,
    describe,
    describe_bug,
    describe_fully,
    revive,
)

CLASSES = sorted(
    {
        found
        for module in (errors, connection_errors)
        for found in vars(module).values()
        if isinstance(found, type) and issubclass(found, StorageError)
    },
    key=lambda kind: kind.__name__,
)
REVIVED = [kind for kind in CLASSES if kind is not StorageError]


def make(kind: type[StorageError]) -> StorageError:
    if issubclass(kind, CommandFailed):
        return kind(("vgchange", "-ay"), 5, "no such group", advice="Look.")
    if issubclass(kind, SystemFailure):
        return kind("cannot open '/x'", errno.EACCES, advice="Look.")
    if issubclass(kind, BadArgument):
        return kind("unsupported", function="storagePoolRefresh", argument="flags", advice="Look.")
    return kind("detail", advice="Look.")


def sent(remote: RemoteError) -> RemoteError:
    """Return an error after it was on the wire."""
    return RemoteError.unpack(remote.pack())


def test_normal_shape() -> None:
    remote = describe(NoSuchPool("no pool 'x'"))
    assert remote == RemoteError(
        49,
        18,
        "Storage pool not found: no pool 'x'",
        2,
        None,
        "Storage pool not found: %s",
        "no pool 'x'",
        None,
        -1,
        -1,
        None,
    )
    taken = describe(VolumeExists("'a.img'"))
    assert taken.message == "storage volume 'a.img' exists already"
    assert (taken.str1, taken.str2) == ("storage volume %s exists already", "'a.img'")


def test_system_shape() -> None:
    remote = describe(SystemFailure("cannot open '/x'", errno.ENOENT, domain=Domain.NONE))
    text = "cannot open '/x': No such file or directory"
    assert remote == RemoteError(38, 0, text, str1="%s", str2=text, int1=errno.ENOENT, int2=-1)


def test_argument_shape() -> None:
    error = BadArgument("unsupported flags", function="storagePoolRefresh", argument="flags")
    assert describe(error) == RemoteError(
        8, 18, "unsupported flags", str1="storagePoolRefresh", str2="flags", int1=0, int2=0
    )
    assert describe(BadArgument("without a name")).str1 == "%s"


@pytest.mark.parametrize("kind", REVIVED)
def test_revived_from_our_program(kind: type[StorageError]) -> None:
    error = make(kind)
    again = revive(sent(describe_fully(error)))
    assert type(again) is kind
    assert (again.message, again.detail) == (error.message, error.detail)
    assert (again.code, again.domain, again.advice) == (error.code, error.domain, error.advice)
    assert again.__dict__.keys() >= error.__dict__.keys()
    if isinstance(error, SystemFailure):
        assert isinstance(again, SystemFailure)
        assert again.errno == error.errno


@pytest.mark.parametrize("kind", REVIVED)
def test_revived_from_libvirt(kind: type[StorageError]) -> None:
    error = make(kind)
    again = revive(sent(describe(error)))
    assert issubclass(kind, type(again))
    assert type(again) is not StorageError
    assert (again.message, again.code, again.domain) == (error.message, error.code, error.domain)
    assert again.advice is None
    assert describe(again) == describe(error)
    assert again.__dict__.keys() >= set(StorageError("x").__dict__)


def test_nearest_class() -> None:
    assert type(revive(describe(PoolBusy("busy")))) is errors.InternalError
    assert type(revive(describe(InvalidArgument("x")))) is InvalidArgument
    shape = revive(describe(BadArgument("unsupported", function="storageVolWipe", argument="f")))
    assert isinstance(shape, BadArgument)
    assert (shape.function, shape.argument) == ("storageVolWipe", "f")
    plain = revive(describe_fully(BadArgument("unsupported", function="storageVolWipe")))
    assert isinstance(plain, BadArgument)
    assert (plain.function, plain.argument) == ("", "")


def test_other_language() -> None:
    """The code says what it is; the message of a daemon in German stays as it is."""
    remote = RemoteError(49, 18, "Speicherpool nicht gefunden: x", str1="irgendwas: %s", str2="x")
    error = revive(remote)
    assert isinstance(error, NoSuchPool)
    assert str(error) == "Speicherpool nicht gefunden: x"
    assert describe(error).message == remote.message


def test_newer_daemon() -> None:
    """Newer daemons send another form of the prefix; the message counts."""
    remote = RemoteError(27, 18, "XML error: bad", str1="XML error: %1$s", str2="bad")
    error = revive(remote)
    assert type(error) is XMLError
    assert (error.detail, error.element) == ("bad", None)


def test_foreign_code() -> None:
    error = revive(RemoteError(42, 10, "Domain not found: x", str1="Domain not found: %s"))
    assert (error.code, str(error), error.domain) == (42, "Domain not found: x", Domain.NONE)
    assert type(error) not in CLASSES
    assert revive(RemoteError(77, 18, None)).message == "Unknown error"


@pytest.mark.parametrize("name", ["StorageError", "os", "where", "Domain", "RemoteError"])
def test_name_of_no_class(name: str) -> None:
    error = revive(RemoteError(49, 18, "Storage pool not found: x", str1=name))
    assert type(error) is NoSuchPool


def test_bug() -> None:
    remote = describe_bug(KeyError("x"))
    assert (remote.code, remote.domain) == (1, 7)
    assert remote.message == "internal error: KeyError: 'x'"


@pytest.mark.parametrize("text", ["x" * 5_000_000, "\udcff" * 2_000_000, "漢" * 2_000_000])
def test_long_texts_are_cut(text: str) -> None:
    for remote in (describe(NoSuchPool(text)), describe_fully(NoSuchPool(text, advice=text))):
        assert len(remote.pack()) < 4 << 20
        assert (remote.message or "").endswith(" ...")


ODD_TEXTS = st.text(st.characters() | st.sampled_from("\0\ud800\udcff"), max_size=30)


@given(ODD_TEXTS, ODD_TEXTS)
@settings(deadline=None)
def test_every_error_reaches_its_client(detail: str, advice: str) -> None:
    """Also one with a NUL, or with characters that are none."""
    error = RPCError(detail, advice=advice)
    for remote in (describe(error), describe_fully(error)):
        assert revive(sent(remote)).message == remote.message


@given(
    st.builds(
        RemoteError,
        st.integers(-5, 120),
        st.integers(-5, 120),
        st.none() | st.text(max_size=20),
        str1=st.none() | st.text(max_size=8) | st.sampled_from([c.__name__ for c in CLASSES]),
        str2=st.none() | st.text(max_size=8),
        str3=st.none() | st.text(max_size=8),
        int1=st.integers(-(2**31), 2**31 - 1),
    )
)
@settings(deadline=None)
def test_anything_is_an_error(remote: RemoteError) -> None:
    error = revive(remote)
    assert error.code == remote.code
    assert str(error) == ("Unknown error" if remote.message is None else remote.message)
