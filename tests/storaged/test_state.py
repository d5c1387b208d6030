"""What outlives an engine: files that libvirt could have written, and hostile ones."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged import poolxml
from storaged.errors import InternalError, InvalidArgument, StorageError, SystemFailure
from storaged.model import Permissions, PoolDef, PoolType, Space
from storaged.paths import Paths
from storaged.state import LoadedPool, LoadedState, StateStore

UUIDS = [UUID(int=number) for number in range(1, 10)]


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths.below(tmp_path)


@pytest.fixture
def store(paths: Paths) -> StateStore:
    return StateStore(paths, boot="this")


def pool(name: str = "p", number: int = 0) -> PoolDef:
    permissions = Permissions(mode=0o711, owner=0, group=0)
    return PoolDef(PoolType.DIR, name, UUIDS[number], target=f"/t/{name}", permissions=permissions)


def put(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def only_problem(state: LoadedState) -> str:
    assert len(state.problems) == 1, state.problems
    return state.problems[0]


# Definitions


def test_nothing_is_there(paths: Paths, store: StateStore) -> None:
    assert store.load() == LoadedState((), ())
    assert names(paths.config.parents[2]) == []


def test_round_trip(store: StateStore) -> None:
    store.write_config(pool("b", 1))
    store.write_live(pool("b", 1), Space(3, 2, 1))
    store.write_config(pool("a", 0))
    store.write_live(pool("c", 2))
    store.set_autostart("a", True)
    assert store.load() == LoadedState(
        (
            LoadedPool("a", pool("a", 0), None, True),
            LoadedPool("b", pool("b", 1), pool("b", 1), False),
            LoadedPool("c", None, pool("c", 2), False),
        ),
        (),
    )


def test_live_and_pending_definitions_differ(store: StateStore) -> None:
    live, kept = pool(), replace(pool(), target="/elsewhere")
    store.write_live(live)
    store.write_config(kept)
    assert store.load().pools == (LoadedPool("p", kept, live, False),)


HEAD = """\
<!--
Written by storaged, which replaces this file as a whole: do not edit it by hand.
To change the pool:
  storagectl pool edit p
-->

"""


def test_config_file(paths: Paths, store: StateStore) -> None:
    store.write_config(pool())
    path = paths.config_file("p")
    assert path.read_text() == HEAD + poolxml.format_pool(pool())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(paths.config) == ["p.xml"]


def test_live_file(paths: Paths, store: StateStore) -> None:
    """As libvirt writes it, indented by one step below ``poolstate``."""
    store.write_live(pool(), Space(7, 4, 3))
    text = paths.live_file("p").read_text()
    lines = poolxml.format_pool(pool(), Space(7, 4, 3)).splitlines()
    assert text == HEAD + "\n".join(
        ["<poolstate>", *(f"  {line}" for line in lines), "</poolstate>\n"]
    )
    assert stat.S_IMODE(paths.live_file("p").stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["a--b", "-rf", "a b", "a;b", "ü", "$HOME", "a-", "'", "--"])
def test_only_plain_names_stand_in_the_comment(store: StateStore, paths: Paths, name: str) -> None:
    store.write_config(pool(name))
    text = paths.config_file(name).read_text()
    assert f"  storagectl pool edit {name if name == 'a-' else UUIDS[0]}\n" in text
    assert [found.config for found in store.load().pools] == [pool(name)]


def test_a_label_with_lines_survives_the_indent(store: StateStore) -> None:
    odd = replace(pool(), permissions=Permissions(label="one\n  two\nthree"))
    store.write_live(odd)
    assert store.load().pools[0].live == odd


def test_redefinition_replaces(paths: Paths, store: StateStore) -> None:
    store.write_config(pool())
    store.write_config(replace(pool(), target="/new"))
    found = store.load().pools[0].config
    assert found is not None
    assert found.target == "/new"
    assert names(paths.config) == ["p.xml"]


def test_a_write_that_fails_keeps_the_old_definition(
    store: StateStore, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write_config(pool())
    store.write_live(pool())

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(os, "fchmod", lambda fd, mode: full(fd))
    for write in (store.write_config, store.write_live):
        with pytest.raises(SystemFailure, match=r"p\.xml': No space left on device"):
            write(replace(pool(), target="/new"))
    monkeypatch.undo()
    assert store.load() == LoadedState((LoadedPool("p", pool(), pool(), False),), ())
    assert names(paths.config) == names(paths.state) == ["p.xml"]


def test_remove(paths: Paths, store: StateStore) -> None:
    store.write_config(pool())
    store.write_live(pool())
    store.set_autostart("p", True)
    for _ in range(2):
        store.remove_config("p")
        assert store.load().pools == (LoadedPool("p", None, pool(), False),)
    assert names(paths.autostart) == []
    for _ in range(2):
        store.remove_live("p")
    assert store.load() == LoadedState((), ())


def test_names_do_not_lead_out(store: StateStore) -> None:
    for call in (store.remove_config, store.remove_live):
        with pytest.raises(InvalidArgument):
            call("../p")


def test_read_only(paths: Paths, store: StateStore) -> None:
    store.write_config(pool())
    looking = StateStore(paths, readonly=True)
    calls: list[Callable[[], None]] = [
        lambda: looking.write_config(pool()),
        lambda: looking.remove_config("p"),
        lambda: looking.set_autostart("p", True),
        lambda: looking.write_live(pool()),
        lambda: looking.remove_live("p"),
        lambda: looking.write_anchor(UUIDS[0], {}),
        lambda: looking.remove_anchor(UUIDS[0]),
        looking.mark_autostarted,
    ]
    for call in calls:
        with pytest.raises(InternalError, match="read-only"):
            call()
    assert looking.load() == store.load()
    assert not looking.needs_autostart()


# Autostart


def test_autostart(paths: Paths, store: StateStore) -> None:
    store.write_config(pool())
    link = paths.autostart_link("p")
    for _ in range(2):
        store.set_autostart("p", True)
        assert link.readlink() == paths.config_file("p")
        assert store.load().pools[0].autostart
    for _ in range(2):
        store.set_autostart("p", False)
        assert not os.path.lexists(link)
        assert not store.load().pools[0].autostart


def test_a_link_that_leads_nowhere_is_replaced(paths: Paths, store: StateStore) -> None:
    """Such as that of a root which has been moved."""
    store.write_config(pool())
    paths.autostart.mkdir()
    link = paths.autostart_link("p")
    link.symlink_to("/moved/etc/libvirt/storage/p.xml")
    assert f"{link}: does not lead to" in only_problem(store.load())
    store.set_autostart("p", True)
    assert link.readlink() == paths.config_file("p")
    assert store.load().problems == ()


@pytest.mark.parametrize("target", ["p.xml", "loop"])
def test_a_link_in_a_circle_is_replaced(paths: Paths, store: StateStore, target: str) -> None:
    store.write_config(pool())
    paths.autostart.mkdir()
    (paths.autostart / "loop").symlink_to("p.xml")
    paths.autostart_link("p").symlink_to(target)
    assert not store.load().pools[0].autostart
    store.set_autostart("p", True)
    assert store.load().pools[0].autostart


def test_another_way_to_the_definition_counts(paths: Paths, store: StateStore) -> None:
    """As with libvirt, which looks at what the link leads to."""
    store.write_config(pool())
    paths.autostart.mkdir()
    paths.autostart_link("p").symlink_to("../p.xml")
    assert store.load() == LoadedState((LoadedPool("p", pool(), None, True),), ())
    store.set_autostart("p", True)
    store.set_autostart("p", False)
    assert names(paths.autostart) == []


@pytest.mark.parametrize("kind", ["file", "directory", "link", "fifo"])
def test_what_is_foreign_stays(paths: Paths, store: StateStore, kind: str) -> None:
    store.write_config(pool())
    paths.autostart.mkdir()
    link = paths.autostart_link("p")
    make: dict[str, Callable[[], object]] = {
        "file": lambda: link.write_text("mine"),
        "directory": link.mkdir,
        "link": lambda: link.symlink_to("/etc/passwd"),
        "fifo": lambda: os.mkfifo(link),
    }
    make[kind]()
    before = link.lstat()
    for autostart in (True, False):
        with pytest.raises(SystemFailure) as caught:
            store.set_autostart("p", autostart)
        assert str(link) in str(caught.value)
        assert str(link) in (caught.value.advice or "")
    assert "Failed to delete symlink" in str(caught.value)
    loaded = store.load()
    assert str(link) in only_problem(loaded)
    assert not loaded.pools[0].autostart
    store.remove_config("p")
    assert os.path.samestat(before, link.lstat())


def test_links_alone_make_no_pool(paths: Paths, store: StateStore) -> None:
    paths.autostart.mkdir(parents=True)
    paths.autostart_link("p").symlink_to(paths.config_file("p"))
    assert str(paths.autostart_link("p")) in only_problem(store.load())


# Hostile directories


def test_what_is_no_definition_is_ignored(paths: Paths, store: StateStore) -> None:
    store.write_config(pool())
    store.write_live(pool())
    for name in (
        "driver.pid",
        "autostarted",
        "p.vol.secret.a1B2c3",
        ".storaged-1-ab.tmp",
        "x.xml~",
    ):
        put(paths.state / name, "rubbish")
        put(paths.config / name, "rubbish")
    put(paths.config / ".xml", "rubbish")
    (paths.state / "dir").mkdir()
    assert store.load() == LoadedState((LoadedPool("p", pool(), pool(), False),), ())


def test_a_name_may_begin_with_a_dot(store: StateStore) -> None:
    store.write_config(pool(".p"))
    assert store.load().pools[0].name == ".p"


LAUGHS = (
    "<!DOCTYPE pool [<!ENTITY a 'ha'>"
    + "".join(f"<!ENTITY a{n} '&a{n - 1 or ''};&a{n - 1 or ''};'>" for n in range(1, 30))
    + "]><pool type='dir'><name>&a29;</name></pool>"
)
GOOD = poolxml.format_pool(pool())

BROKEN_CONFIGS: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "Document is empty"),
    "truncated": (GOOD[:100], "storage_pool_definition"),
    "zeros": (bytes(4096), "NUL"),
    "not UTF-8": (GOOD.encode().replace(b"/t/p", b"/t/\xff"), "not proper UTF-8"),
    "wrong root": (f"<poolstate>{GOOD}</poolstate>", "'pool', not 'poolstate'"),
    "another name": (GOOD.replace(">p<", ">q<"), "'p.xml' does not match pool name 'q'"),
    "no type": ("<pool><name>p</name></pool>", "type"),
    "entities": (LAUGHS, "document type declaration"),
    "outside": (
        "<!DOCTYPE pool SYSTEM 'file:///etc/passwd'><pool type='dir'/>",
        "document type declaration",
    ),
    "deep": ("<a>" * 5000, "depth"),
    "bad uuid": (GOOD.replace(str(UUIDS[0]), "x"), "malformed uuid"),
    "long": (b" " * (2 << 20), "longer than"),
    "huge": (b" " * ((8 << 20) + 1), "File too large"),
}


@pytest.mark.parametrize(("text", "why"), BROKEN_CONFIGS.values(), ids=BROKEN_CONFIGS.keys())
def test_broken_configs(paths: Paths, store: StateStore, text: str | bytes, why: str) -> None:
    store.write_config(pool("other", 1))
    path = put(paths.config_file("p"), text)
    before = path.read_bytes()
    loaded = store.load()
    assert [found.name for found in loaded.pools] == ["other"]
    problem = only_problem(loaded)
    assert problem.count(str(path)) == 1
    assert why in problem
    assert path.read_bytes() == before


BROKEN_STATES: dict[str, tuple[str | bytes, str]] = {
    "wrong root": (GOOD, "'poolstate', not 'pool'"),
    "nothing in it": ("<poolstate/>", "Could not find any 'pool' element in state file"),
    "in another one": (f"<poolstate><x>{GOOD}</x></poolstate>", "Could not find any 'pool'"),
    "another name": (
        f"<poolstate>{GOOD.replace('>p<', '>q<')}</poolstate>",
        "Storage pool state file 'p.xml' does not match pool name 'q'",
    ),
    "entities": (LAUGHS, "document type declaration"),
    "truncated": (f"<poolstate>{GOOD}", "storage_pool_state"),
}


@pytest.mark.parametrize(("text", "why"), BROKEN_STATES.values(), ids=BROKEN_STATES.keys())
def test_broken_live_files(paths: Paths, store: StateStore, text: str, why: str) -> None:
    store.write_config(pool())
    path = put(paths.live_file("p"), text)
    loaded = store.load()
    assert loaded.pools == (LoadedPool("p", pool(), None, False),)
    problem = only_problem(loaded)
    assert problem.startswith(f"{path}: ")
    assert why in problem


def test_an_error_in_a_live_file_names_its_line(paths: Paths, store: StateStore) -> None:
    text = f"<!-- \n\n -->\n<poolstate>\n{GOOD}</poolstate>".replace("0711", "9")
    line = text[: text.index("<mode>")].count("\n") + 1
    put(paths.live_file("p"), text)
    problem = only_problem(store.load())
    assert "malformed octal mode" in problem
    assert f"line {line}." in problem


@pytest.mark.parametrize("kind", ["fifo", "socket", "directory", "loop", "link", "device"])
def test_what_is_no_file_is_reported(paths: Paths, store: StateStore, kind: str) -> None:
    import socket

    store.write_config(pool("other", 1))
    store.write_live(pool("other", 1))
    for path in (paths.config_file("p"), paths.live_file("p")):
        with socket.socket(socket.AF_UNIX) as listener:
            make: dict[str, Callable[[], object]] = {
                "fifo": lambda: os.mkfifo(path),  # noqa: B023 -- called at once
                "socket": lambda: listener.bind(os.path.relpath(path)),  # noqa: B023
                "directory": path.mkdir,
                "loop": lambda: path.symlink_to(path),  # noqa: B023
                "link": lambda: path.symlink_to(paths.config_file("other")),  # noqa: B023
                "device": lambda: path.symlink_to("/dev/zero"),  # noqa: B023
            }
            make[kind]()
    loaded = store.load()
    assert loaded.pools == (LoadedPool("other", pool("other", 1), pool("other", 1), False),)
    assert len(loaded.problems) == 2
    assert str(paths.live_file("p")) in loaded.problems[0]
    assert str(paths.config_file("p")) in loaded.problems[1]


def test_of_two_the_first_counts(store: StateStore) -> None:
    for name in ("b", "a", "c"):
        store.write_config(replace(pool("a"), name=name))
    loaded = store.load()
    assert [found.name for found in loaded.pools] == ["a"]
    assert len(loaded.problems) == 2
    for name, problem in zip("bc", loaded.problems, strict=True):
        assert f"/{name}.xml: " in problem
        assert f"pool 'a' is already defined with uuid {UUIDS[0]}" in problem


def test_what_runs_counts_before_what_is_kept(store: StateStore) -> None:
    store.write_live(pool("z"))
    store.write_config(replace(pool("z"), name="a"))
    store.write_config(pool("z", 1))
    loaded = store.load()
    assert loaded.pools == (LoadedPool("z", None, pool("z"), False),)
    assert "pool 'z' is already defined" in loaded.problems[0]
    assert f"pool 'z' already exists with uuid {UUIDS[0]}" in loaded.problems[1]


def test_a_type_that_nobody_brings_is_kept(paths: Paths, store: StateStore) -> None:
    path = put(paths.config_file("p"), GOOD.replace("'dir'", "'holodeck'"))
    before = path.read_bytes()
    loaded = store.load()
    assert loaded.problems == ()
    found = loaded.pools[0].config
    assert found is not None
    assert str(found.type) == "holodeck"
    assert path.read_bytes() == before


def test_names_that_are_not_text(paths: Paths, store: StateStore) -> None:
    put(paths.config / os.fsdecode(b"\xff.xml"), GOOD)
    problem = only_problem(store.load())
    assert problem.encode().startswith(f"{paths.config}/\\xff.xml: ".encode())


def test_a_directory_that_cannot_be_read(
    paths: Paths, store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write_live(pool())
    put(paths.config, "a file where the directory should be")
    loaded = store.load()
    assert loaded.pools == (LoadedPool("p", None, pool(), False),)
    assert only_problem(loaded) == f"cannot open directory '{paths.config}': Not a directory"


def test_as_an_ordinary_user(ordinary_directory: Path) -> None:
    paths = Paths.below(ordinary_directory)
    store = StateStore(paths)
    store.write_config(pool())
    paths.config.chmod(0)
    assert "Permission denied" in only_problem(StateStore(paths, readonly=True).load())
    with pytest.raises(SystemFailure, match="Permission denied"):
        store.write_config(pool())
    paths.config.chmod(0o700)
    paths.config_file("p").chmod(0)
    assert "Permission denied" in only_problem(store.load())


def test_problems_are_bounded(paths: Paths, store: StateStore) -> None:
    put(paths.config_file("p"), f"<pool type='{'x' * 500_000}'><name>{'y' * 300_000}</name></pool>")
    assert len(only_problem(store.load())) <= 1000


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_whatever_lies_there_stops_nothing(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    paths = Paths.below(tmp_path_factory.mktemp("root"))
    store = StateStore(paths)
    store.write_config(pool("other", 1))
    good = f"<poolstate>{GOOD}</poolstate>".encode()
    begin = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(begin, len(good)))
    bad = good[:begin] + data.draw(st.binary(max_size=20)) + good[end:]
    put(paths.live_file("p"), bad)
    put(paths.config_file("p"), bad)
    loaded = store.load()
    assert [found.name for found in loaded.pools if found.config] == ["other"]
    assert "\n" not in "".join(loaded.problems) or bad.count(b"\n")
    assert paths.live_file("p").read_bytes() == bad


# Anchors


def test_anchors(paths: Paths, store: StateStore) -> None:
    assert store.read_anchor(UUIDS[0]) is None
    anchor: dict[str, str | int] = {"device": 2**63, "path": "/ü", "source": ""}
    store.write_anchor(UUIDS[0], anchor)
    assert store.read_anchor(UUIDS[0]) == anchor
    assert store.read_anchor(UUIDS[1]) is None
    assert stat.S_IMODE(paths.anchor_file(UUIDS[0]).stat().st_mode) == 0o600
    for _ in range(2):
        store.remove_anchor(UUIDS[0])
        assert store.read_anchor(UUIDS[0]) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"a": [1]}', '{"a": null}', "[" * 60000, b"\xff", " " * 70000]
)
def test_a_broken_anchor_is_named(paths: Paths, store: StateStore, text: str | bytes) -> None:
    path = put(paths.anchor_file(UUIDS[0]), text)
    with pytest.raises(StorageError) as caught:
        store.read_anchor(UUIDS[0])
    assert str(path) in str(caught.value)


# Boots


def test_the_first_opening_since_the_boot(paths: Paths, store: StateStore) -> None:
    assert store.first_since_boot()
    assert store.first_since_boot(), "what was not finished counts as not begun"
    store.note_boot()
    assert not store.first_since_boot()
    assert not StateStore(paths, boot="this").first_since_boot()
    assert StateStore(paths, boot="next").first_since_boot()


def test_the_kernel_names_the_boot(paths: Paths) -> None:
    store = StateStore(paths)
    store.note_boot()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    assert paths.boot_file.read_text() == boot
    assert not StateStore(paths).first_since_boot()


def fill(paths: Paths, store: StateStore) -> None:
    store.write_config(pool())
    store.set_autostart("p", True)
    store.write_live(pool())
    store.write_anchor(UUIDS[0], {"device": 1})
    store.note_unstarted(UUIDS[0], "no server")
    store.mark_autostarted()
    put(paths.lock_file, "1")
    put(paths.state / "p.v.secret.abcdef", "s3cret")
    put(paths.config / ".storaged-1-ab.tmp", "half")
    store.note_boot()


def test_a_boot_clears_what_it_should_have(paths: Paths, store: StateStore) -> None:
    fill(paths, store)
    (paths.state / "directory.xml").mkdir()
    later = StateStore(paths, boot="later")
    assert later.first_since_boot()
    assert names(paths.state) == ["directory.xml", "driver.pid"]
    (paths.state / "directory.xml").rmdir()
    assert names(paths.config) == ["autostart", "p.xml"]
    assert later.load() == LoadedState((LoadedPool("p", pool(), None, True),), ())
    assert later.read_anchor(UUIDS[0]) is None
    assert later.unstarted() == {}
    assert names(paths.unstarted) == []
    assert later.needs_autostart()
    later.write_live(pool())
    assert later.first_since_boot(), "killed before it was finished"
    assert later.load().pools[0].live == pool(), "cleared once, not twice"
    later.note_boot()
    assert not later.first_since_boot()


def test_within_a_boot_all_stays(paths: Paths, store: StateStore) -> None:
    fill(paths, store)
    assert not StateStore(paths, boot="this").first_since_boot()
    assert store.load() == LoadedState((LoadedPool("p", pool(), pool(), True),), ())
    assert (paths.state / "p.v.secret.abcdef").exists()
    assert not store.needs_autostart()
    assert store.unstarted() == {UUIDS[0]: "no server"}


def test_read_only_disregards_another_boot(paths: Paths, store: StateStore) -> None:
    fill(paths, store)
    before = sorted(path for path in paths.config.parents[2].rglob("*"))
    looking = StateStore(paths, readonly=True, boot="later")
    assert looking.first_since_boot()
    assert looking.load() == LoadedState((LoadedPool("p", pool(), None, True),), ())
    assert looking.unstarted() == {}
    looking.note_boot()
    assert sorted(path for path in paths.config.parents[2].rglob("*")) == before
    assert not StateStore(paths, readonly=True, boot="this").first_since_boot()


def test_libvirt_looked_in_this_boot(paths: Paths, store: StateStore) -> None:
    """Its mark, in a directory that a boot clears, says so."""
    put(paths.autostarted_file, "")
    store.write_live(pool())
    assert not store.first_since_boot()
    assert not store.needs_autostart()
    assert store.load().pools[0].live == pool()
    assert StateStore(paths, boot="next").first_since_boot(), "a mark alone does not date it"
    assert names(paths.state) == []


def test_autostart_once(paths: Paths, store: StateStore) -> None:
    assert store.needs_autostart()
    store.mark_autostarted()
    assert not store.needs_autostart()
    assert paths.autostarted_file.read_bytes() == b""
    store.mark_autostarted()


def test_what_is_still_to_be_started(paths: Paths, store: StateStore) -> None:
    assert store.unstarted() == {}
    store.note_unstarted(UUIDS[0], "no server")
    store.note_unstarted(UUIDS[1], "\udcff" + "é" * 5000)
    store.note_unstarted(UUIDS[0], "refused")
    put(paths.unstarted / "no uuid", "x")
    put(paths.unstarted / str(UUIDS[2]), "x" * 5000)
    found = store.unstarted()
    assert found.keys() == {UUIDS[0], UUIDS[1]}
    assert found[UUIDS[0]] == "refused"
    assert found[UUIDS[1]].startswith("\\udcffé")
    for _ in range(2):
        store.remove_unstarted(UUIDS[0])
    assert store.unstarted().keys() == {UUIDS[1]}


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"x" * 5000])
def test_a_broken_boot_file(paths: Paths, store: StateStore, text: bytes) -> None:
    put(paths.boot_file, text)
    store.write_live(pool())
    assert store.first_since_boot()
    store.note_boot()
    assert not store.first_since_boot()
