"""``pool edit`` with editors that do all sorts of things."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.cli.conftest import Ctl
from tests.cli.test_terminal import Screen

#: each test starts programs; together they take most of a minute
pytestmark = pytest.mark.slow

BOTH_WAYS = True


@pytest.fixture
def editor(tmp_path: Path):
    """Make an editor of a shell script; ``$1`` is the file."""

    def make(script: str) -> str:
        program = tmp_path / "the editor"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return shlex.quote(str(program))

    return make


def test_a_change(pool: Ctl, editor):
    env = {"VISUAL": editor('sed -i s/images/other/ "$1"'), "EDITOR": "false"}
    assert pool.out("pool", "edit", "t", env=env) == "pool t changed\n"
    assert f"<path>{pool.images.parent}/other</path>" in pool.out(
        "pool", "dumpxml", "t", "--inactive"
    )
    assert f"<path>{pool.images}</path>" in pool.out("pool", "dumpxml", "t")


def test_no_change(pool: Ctl, tmp_path: Path):
    env = {"EDITOR": "true", "VISUAL": "", "TMPDIR": str(tmp_path)}
    assert pool.out("pool", "edit", "t", env=env) == "pool t not changed\n"
    assert list(tmp_path.glob("storagectl-*")) == []


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ('echo "<pool" > "$1"', 8),
        ('printf "\\377" > "$1"', 8),
        ("sed -i s/dir/nonsense/ $1", 8),
        ('echo mine >> "$1"; exit 3', 1),
    ],
    ids=["syntax", "not-utf-8", "type", "editor-failed"],
)
def test_what_was_typed_is_never_lost(pool: Ctl, editor, tmp_path: Path, script: str, status: int):
    definition = pool.root / "etc/libvirt/storage/t.xml"
    before = definition.read_bytes()
    env = {"VISUAL": editor(script), "TMPDIR": str(tmp_path)}
    done = pool.run("pool", "edit", "t", status=status, env=env)
    [kept] = re.findall(rb"text is kept in (\S+\.xml)\.", done.stderr)
    text = Path(kept.decode()).read_bytes()
    assert any(typed in text for typed in (b"<pool\n", b"\377", b"nonsense", b"mine"))
    assert definition.read_bytes() == before


def test_an_editor_that_is_not_there(pool: Ctl):
    done = pool.run("pool", "edit", "t", status=1, env={"VISUAL": "/none/ed -x"})
    assert b"cannot run the editor '/none/ed -x': No such file" in done.stderr
    assert b"Set EDITOR" in done.stderr


def test_somebody_else_was_quicker(pool: Ctl, editor, tmp_path: Path):
    other = shlex.join(pool.argv("pool", "undefine", "t"))
    pool.out("pool", "stop", "t")
    env = {"VISUAL": editor(f"sed -i s/images/other/ $1; {other}"), "TMPDIR": str(tmp_path)}
    done = pool.run("pool", "edit", "t", status=4, env=env)
    assert b"text is kept in" in done.stderr


def test_on_a_terminal_it_offers_to_edit_again(pool: Ctl, editor, tmp_path: Path):
    count = tmp_path / "count"
    script = (
        f'echo x >> {count}; if [ "$(wc -l < {count})" = 1 ]; then echo "<broken" > "$1";'
        f' else printf "%s" "$(cat {tmp_path}/good)" > "$1"; fi'
    )
    good = pool.out("pool", "dumpxml", "t", "--inactive").replace("images", "other")
    (tmp_path / "good").write_text(good)
    pool.env["VISUAL"] = editor(script)
    screen = Screen(pool, "pool", "edit", "t")
    try:
        screen.read_until("Edit it again? [Y/n]: ")
        screen.type(b"y\n")
        assert screen.end() == 0
    finally:
        screen.close()
    assert "pool t changed" in screen.text
    assert "/other</path>" in pool.out("pool", "dumpxml", "t", "--inactive")
