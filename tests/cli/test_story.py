"""A day with storagectl, each step a process of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Ctl

#: each test starts programs; together they take most of a minute
pytestmark = pytest.mark.slow

BOTH_WAYS = True
WITHOUT_DAEMON = ("test_queries_work_while_another_engine_holds_the_lock",)


def qemu_info(path: str | Path) -> dict[str, object]:
    done = subprocess.run(
        ["qemu-img", "info", "--output=json", str(path)], capture_output=True, check=True
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_the_life_of_a_pool(ctl: Ctl):
    assert ctl.out("pool", "define-as", "t", "dir", "--target", str(ctl.images)) == (
        "pool t defined\n"
    )
    assert ctl.out("pool", "list") == "Name  State  Autostart  Type\n"
    assert ctl.out("pool", "build", "t") == "pool t built\n"
    assert ctl.images.is_dir()
    assert ctl.out("pool", "start", "t") == "pool t started\n"
    assert ctl.out("pool", "autostart", "t") == "autostart of pool t is on\n"
    assert ctl.out("pool", "list") == (
        "Name  State   Autostart  Type\nt     active  yes        dir\n"
    )
    assert ctl.out("pool", "refresh", "t") == "pool t refreshed\n"
    assert ctl.out("pool", "destroy", "t") == "pool t stopped\n"
    assert ctl.json("pool", "list") == []
    assert [pool["state"] for pool in ctl.json("pool", "list", "--all")] == ["inactive"]
    assert ctl.out("pool", "autostart", "t", "--disable") == "autostart of pool t is off\n"
    assert ctl.out("pool", "delete", "t") == "storage of pool t deleted\n"
    assert not ctl.images.exists()
    assert ctl.out("pool", "undefine", "t") == "pool t undefined, its data stay\n"
    assert ctl.json("pool", "list", "--all") == []


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vmdk"])
def test_the_life_of_a_volume(pool: Ctl, tmp_path: Path, kind: str):
    path = pool.images / f"a.{kind}"
    said = pool.out("vol", "create-as", "t", path.name, "8M", "--format", kind)
    assert said == f"volume a.{kind} created: {kind}, 8 MiB, thin, {path}\n"
    assert qemu_info(path)["format"] == kind
    assert qemu_info(path)["virtual-size"] == 8 << 20

    content = tmp_path / "content"
    content.write_bytes(path.read_bytes()[:65536].ljust(131072, b"x"))
    said = pool.out("vol", "upload", path.name, str(content), "--pool", "t")
    assert said == f"128 KiB written to volume {path.name}\n"
    assert path.read_bytes()[:131072] == content.read_bytes()

    back = tmp_path / "back"
    pool.out("vol", "download", f"t/{path.name}", str(back), "--length", "128K")
    assert back.read_bytes() == content.read_bytes()
    piped = pool.run("vol", "download", str(path), "-", "--offset", "64K", "--length", "1K")
    assert piped.stdout == content.read_bytes()[65536:66560]

    assert pool.out("vol", "delete", path.name, "--pool", "t") == f"volume {path.name} deleted\n"
    assert not path.exists()


def test_upload_from_a_pipe(pool: Ctl):
    pool.out("vol", "create-as", "t", "a", "1M")
    assert pool.out("vol", "upload", "t/a", "-", "--offset", "512", stdin=b"hello") == (
        "5 bytes written to volume a\n"
    )
    assert (pool.images / "a").read_bytes()[510:520] == b"\0\0hello\0\0\0"


def test_overlay_and_clones(pool: Ctl):
    pool.out("vol", "create-as", "t", "base.qcow2", "8M", "--format", "qcow2")
    pool.out("vol", "create-as", "t", "top", "--format", "qcow2", "--backing-vol", "base.qcow2")
    info = qemu_info(pool.images / "top")
    assert info["virtual-size"] == 8 << 20
    assert info["full-backing-filename"] == str(pool.images / "base.qcow2")
    assert info["backing-filename-format"] == "qcow2"

    pool.out("vol", "clone", "t", "base.qcow2", "one")
    pool.out("vol", "clone", "base.qcow2", "two", "--pool", "t")
    pool.out("vol", "clone", "t/base.qcow2", "three", "--capacity", "16M")
    assert [volume["name"] for volume in pool.json("vol", "list", "t")] == [
        "base.qcow2", "one", "three", "top", "two",
    ]  # fmt: skip
    assert qemu_info(pool.images / "two")["format"] == "qcow2"
    assert qemu_info(pool.images / "three")["virtual-size"] == 16 << 20


def test_clone_to_another_pool(pool: Ctl, tmp_path: Path):
    pool.run("pool", "ensure", "u", "--target", str(tmp_path / "other"))
    pool.out("vol", "create-as", "t", "a", "1M")
    pool.out("vol", "clone", "t", "a", "b", "--to-pool", "u")
    assert (tmp_path / "other" / "b").stat().st_size == 1 << 20


def test_resize_by_words_of_virsh(pool: Ctl):
    pool.out("vol", "create-as", "t", "a", "1M")
    assert pool.out("vol", "resize", "a", "3M", "--pool", "t") == "volume a resized to 3 MiB\n"
    pool.out("vol", "resize", "t/a", "1M", "--delta")
    pool.out("vol", "resize", "t/a", "-2M", "--delta", "--shrink")
    assert (pool.images / "a").stat().st_size == 2 << 20
    assert "negative" in pool.error("vol", "resize", "t/a", "-1M", "--delta", status=2)


def test_wipe(pool: Ctl):
    pool.out("vol", "create-as", "t", "a", "64K")
    (pool.images / "a").write_bytes(b"x" * 65536)
    assert pool.out("vol", "wipe", "t/a") == "volume a wiped\n"
    assert (pool.images / "a").read_bytes() == bytes(65536)


def test_options_of_a_new_volume(pool: Ctl):
    pool.out(
        *("vol", "create-as", "t", "a", "64M", "--format", "qcow2", "--cluster-size", "4K"),
        *("--lazy-refcounts", "--mode", "0640", "--prealloc-metadata"),
    )
    info = qemu_info(pool.images / "a")
    assert info["cluster-size"] == 4096
    assert info["format-specific"]["data"]["lazy-refcounts"] is True  # type: ignore[index]
    assert (pool.images / "a").stat().st_mode & 0o777 == 0o640
    said = pool.out("vol", "create-as", "t", "full", "1M", "--allocation", "1M")
    assert ", allocated, " in said
    assert (pool.images / "full").stat().st_blocks * 512 >= 1 << 20


def test_xml_in_and_out(ctl: Ctl, tmp_path: Path):
    printed = ctl.out("pool", "define-as", "t", "dir", "--target", str(ctl.images), "--print-xml")
    assert not (ctl.root / "etc").exists()
    document = tmp_path / "t.xml"
    document.write_text(printed)
    assert "defined from" in ctl.out("pool", "define", str(document), "--validate")
    ctl.out("pool", "start", "t", "--build")
    uuid = ctl.out("pool", "uuid", "t").strip()
    assert ctl.out("pool", "name", uuid) == "t\n"
    assert f"<uuid>{uuid}</uuid>" in ctl.out("pool", "dumpxml", "t")

    printed = ctl.out("vol", "create-as", "t", "a&b", "1M", "--format", "qcow2", "--print-xml")
    assert ctl.json("vol", "list", "t") == []
    ctl.out("vol", "create", "t", "-", stdin=printed.encode())
    dumped = ctl.out("vol", "dumpxml", "a&b", "--pool", "t")
    assert "<name>a&amp;b</name>" in dumped
    renamed = dumped.replace("a&amp;b", "c").encode()
    ctl.out("vol", "create-from", "t", "-", "a&b", stdin=renamed)
    assert qemu_info(ctl.images / "c")["virtual-size"] == 1 << 20


def test_a_transient_pool_is_gone_after_its_stop(ctl: Ctl):
    said = ctl.out("pool", "create-as", "t", "dir", "--target", str(ctl.images), "--build")
    assert said == "transient pool t started\n"
    assert [p["persistent"] for p in ctl.json("pool", "list", "--transient")] == [False]
    assert ctl.json("pool", "stop", "t")["pool"].keys() == {"name", "uuid"}
    assert ctl.json("pool", "list", "--all") == []
    assert ctl.images.is_dir()


def test_names_of_a_volume(pool: Ctl):
    pool.out("vol", "create-as", "t", "a", "1M")
    path = str(pool.images / "a")
    for words in (["a", "--pool", "t"], ["t/a"], [path]):
        assert pool.out("vol", "path", *words) == path + "\n"
        assert pool.out("vol", "key", *words) == path + "\n"
        assert pool.out("vol", "name", *words) == "a\n"
    assert pool.out("vol", "pool", path) == "t\n"
    assert pool.out("vol-path", "t/a") == path + "\n"  # virsh's spelling
    uuid = pool.out("pool", "uuid", "t").strip()
    assert pool.out("vol", "path", "a", "--pool", uuid) == path + "\n"


def test_ensure_twice(ctl: Ctl):
    words = ("pool", "ensure", "t", "--target", str(ctl.images))
    said = ctl.out(*words)
    assert said.startswith("t: defined, ")
    assert "started, autostart on (" in said
    assert ctl.out(*words).startswith("t: unchanged (")
    assert ctl.out("vol", "ensure", "t", "a", "1M") == "a: created\n"
    assert ctl.out("vol", "ensure", "t", "a", "1M") == "a: unchanged\n"
    said = ctl.out("vol", "ensure", "t", "a", "512K")
    assert said.startswith("a: unchanged\n  capacity differs: wanted ")


def test_ensure_from_a_file(ctl: Ctl, tmp_path: Path):
    document = tmp_path / "t.xml"
    document.write_text(
        f"<pool type='dir'><name>t</name><target><path>{ctl.images}</path></target></pool>"
    )
    assert ctl.json("pool", "ensure", str(document), "--no-autostart")["changed"] is True
    assert ctl.json("pool", "info", "t")["autostart"] is False
    ctl.error("pool", "ensure", str(document), "--target", "/x", status=2)


def test_the_policy_for_new_volumes(pool: Ctl):
    nothing = {"owner": None, "group": None, "mode": None, "thin_pool": None}
    assert pool.json("pool", "policy", "t") == nothing
    pool.out("pool", "policy", "t", "--mode", "0664")
    pool.out("pool", "policy", "t", "--group", "0")
    assert pool.out("pool", "policy", "t") == (
        "Owner:          -\nGroup:          0\nMode:           0664\nThin pool:      -\n"
    )
    pool.out("vol", "create-as", "t", "a", "1M")
    assert (pool.images / "a").stat().st_mode & 0o777 == 0o664
    pool.out("pool", "policy", "t", "--clear")
    pool.out("vol", "create-as", "t", "b", "1M")
    assert (pool.images / "b").stat().st_mode & 0o777 == 0o600


def test_access(pool: Ctl):
    pool.out("vol", "create-as", "t", "a", "1M", "--mode", "0600")
    assert pool.out("vol", "access", "t/a", "--user", "0").startswith("user root can read")
    report = pool.run("vol", "access", "t/a", "--user", "65533", "--json", status=7)
    obstacles = json.loads(report.stdout)["obstacles"]
    assert str(pool.images / "a") in [one["path"] for one in obstacles]
    assert report.stderr == b""


def test_queries_work_while_another_engine_holds_the_lock(pool: Ctl):
    import storaged

    with storaged.open(pool.root):
        assert pool.out("pool", "list", "--name") == "t\n"
        assert pool.json("vol", "list", "t") == []
        said = pool.error("--lock-timeout", "0.1", "vol", "create-as", "t", "a", "1M", status=6)
    assert said.startswith("error: resource busy: ")


def test_what_a_pool_can_be(ctl: Ctl):
    assert "<pool type='dir' supported='yes'>" in ctl.out("pool", "capabilities")
    assert "not support source discovery" in ctl.error("pool", "find-sources", "dir", status=9)


def test_an_odd_name_leaves_as_the_bytes_it_came_as(pool: Ctl):
    pool.images.joinpath("x\udcff").write_bytes(b"")
    pool.out("pool", "refresh", "t")
    assert b"x\\xff" in pool.run("vol", "list", "t").stdout
    found = pool.run("vol", "path", "x\udcff", "--pool", "t").stdout
    assert found == bytes(pool.images) + b"/x\xff\n"
