"""Volumes that others have as their backing file."""

from __future__ import annotations

from tests.cli.conftest import Ctl

BOTH_WAYS = True


def test_used_by(pool: Ctl):
    pool.run("vol", "create-as", "t", "base", "1M", "--format", "raw")
    assert "Used by" not in pool.out("vol", "info", "t/base")
    for name in ("web1", "web2"):
        pool.run(
            *("vol", "create-as", "t", name, "1M", "--format", "qcow2"),
            *("--backing-vol", "base", "--backing-vol-format", "raw"),
        )
    lines = pool.out("vol", "info", "t/base").splitlines()
    assert [line.split() for line in lines[-2:]] == [
        ["Used", "by:", "t/web1"], ["Used", "by:", "t/web2"],
    ]  # fmt: skip
    assert pool.json("vol", "info", "t/base")["used_by"] == ["t/web1", "t/web2"]
    for words in (("wipe", "t/base"), ("resize", "t/base", "64K", "--shrink")):
        refused = pool.error("vol", *words, status=11)
        assert "t/web1, t/web2" in refused
        assert f"storagectl vol {words[0]} t/base" in refused
        assert "--force" in refused
    pool.run("vol", "wipe", "t/base", "--force")
    refused = pool.error("vol", "delete", "t/base", status=11)
    assert "t/web1, t/web2" in refused
    assert "storagectl vol delete t/base --force" in refused
    pool.run("vol", "delete", "t/base", "--force")
    assert [volume["name"] for volume in pool.json("vol", "list", "t")] == ["web1", "web2"]
