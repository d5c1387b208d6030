"""Completion, in the shells that people have."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Ctl

#: each test starts programs; together they take most of a minute
pytestmark = pytest.mark.slow


@pytest.fixture
def path(pool: Ctl, tmp_path: Path) -> str:
    """A search path on which ``storagectl`` is found."""
    program = tmp_path / "bin" / "storagectl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.join(pool.argv()[:-2])} "$@"\n')
    program.chmod(0o755)
    pool.out("vol", "create-as", "t", "alpha.qcow2", "1M", "--format", "qcow2")
    pool.out("vol", "create-as", "t", "beta", "1M")
    return f"{program.parent}:{os.environ['PATH']}"


def shell(pool: Ctl, path: str, *argv: str) -> list[str]:
    done = subprocess.run(
        argv,
        env=pool.environment(PATH=path, STORAGED_ROOT=str(pool.root)),
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == b""
    return done.stdout.decode().split("\n")[:-1]


def in_bash(pool: Ctl, path: str, *words: str) -> list[str]:
    script = (
        f'eval "$(storagectl completion bash)"; COMP_WORDS=({shlex.join(["storagectl", *words])})'
        f"; COMP_CWORD={len(words)}; _storagectl_completion storagectl"
        '; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    return shell(pool, path, "bash", "-c", script)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["po"], ["pool"]),
        (["pool", "st"], ["start", "stop"]),
        (["pool", "info", ""], ["t"]),
        (["vol", "info", "a", "--po"], ["--pool"]),
        (["vol", "info", "--pool", "t", "al"], ["alpha.qcow2"]),
        (["vol", "info", "t/"], ["t/alpha.qcow2", "t/beta"]),
        (["vol", "info", ""], ["t/"]),
        (["vol", "list", "t", "--det"], ["--details"]),
        (["vol", "clone", "t", ""], ["alpha.qcow2", "beta"]),
        (["pool", "define-as", "x", "di"], ["dir", "disk"]),
        (["vol", "wipe", "t/beta", "--algorithm", "pf"], ["pfitzner7", "pfitzner33"]),
        (["pool", "list", "--type", "net"], ["netfs"]),
    ],
    ids=" ".join,
)
def test_bash(pool: Ctl, path: str, words: list[str], offered: list[str]):
    assert in_bash(pool, path, *words) == offered


def test_completion_is_never_an_error(pool: Ctl, path: str):
    assert in_bash(pool, path, "vol", "info", "none/") == [""]
    in_bash(pool, path, "nonsense", "more", "")
    pool.out("pool", "stop", "t")
    assert in_bash(pool, path, "vol", "info", "t/") == [""]
    shutil.rmtree(pool.root)
    pool.root.write_text("no directory")
    assert in_bash(pool, path, "pool", "info", "") == [""]


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish(pool: Ctl, path: str):
    script = "storagectl completion fish | source; complete -C 'storagectl vol info t/'"
    assert shell(pool, path, "fish", "--no-config", "-c", script) == ["t/alpha.qcow2", "t/beta"]
    script = "storagectl completion fish | source; complete -C 'storagectl pool aut'"
    assert shell(pool, path, "fish", "--no-config", "-c", script) == [
        "autostart\tSet whether a pool starts with the host."
    ]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh(pool: Ctl, path: str):
    script = """
        autoload -U compinit && compinit -u -d $ZDOTDIR/dump
        eval "$(storagectl completion zsh)"
        _describe() { print -l -- ${(P)3}; }  # called as: -V unsorted NAME-OF-THE-ARRAY -U
        words=(storagectl pool sto) CURRENT=3
        _storagectl_completion
    """
    pool.root.mkdir(exist_ok=True)
    env = pool.environment(PATH=path, STORAGED_ROOT=str(pool.root), ZDOTDIR=str(pool.root))
    done = subprocess.run(
        ["zsh", "-f", "-c", script], env=env, capture_output=True, check=True, timeout=60
    )
    assert done.stdout == b"stop:Stop a pool; its data stay.\n"


def test_an_unknown_shell(ctl: Ctl):
    assert "'csh' is not one of" in ctl.error("completion", "csh", status=2)
