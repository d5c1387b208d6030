from __future__ import annotations

import re
from collections.abc import Iterator

import click
import pytest

from storaged.cli import parameters
from storaged.cli.lazy import Command, LazyGroup
from storaged.cli.main import storagectl
from storaged.cli.outcome import MEANINGS
from tests.cli.conftest import TREE


def tree(group: LazyGroup, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    for name, entry in group.table.items():
        yield (*path, name), entry.summary
        inner = entry.load()
        if isinstance(inner, LazyGroup):
            yield from tree(inner, (*path, name))


def find(path: tuple[str, ...]) -> click.Command:
    command: click.Command = storagectl
    for word in path:
        assert isinstance(command, LazyGroup)
        found = command.get_command(click.Context(command), word)
        assert found is not None
        command = found
    return command


PATHS = list(tree(storagectl))


@pytest.mark.parametrize(("path", "summary"), PATHS, ids=[" ".join(path) for path, _ in PATHS])
def test_the_help_of_a_command_teaches(path, summary, capsys):
    assert storagectl.main([*path, "--help"], "storagectl", standalone_mode=False) == 0
    text = capsys.readouterr().out
    command = find(path)
    assert text.startswith(f"Usage: storagectl {' '.join(path)} ")
    assert "," not in summary  # fish would show what stands before it only
    assert " ".join((command.help or "").split()).startswith(summary)
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            assert all(option in text for option in parameter.opts)
    assert "Examples:\n" in text
    assert f"storagectl {path[0]}" in text.split("Examples:\n")[1]


@pytest.mark.parametrize(("path", "_"), PATHS, ids=[" ".join(path) for path, _ in PATHS])
def test_the_examples_parse(path, _, monkeypatch):
    monkeypatch.setattr(parameters, "_user", {"libvirt-qemu": 64055}.__getitem__)
    monkeypatch.setattr(parameters, "_group", {"kvm": 103}.__getitem__)
    ran: list[str] = []
    monkeypatch.setattr(Command, "invoke", lambda self, context: ran.append(self.name))
    command = find(path)
    assert isinstance(command, Command | LazyGroup)
    for example in command.examples:
        for piece in re.split(r" \| | > ", example):
            typed = re.fullmatch(r"(?:[A-Z]+=\w+ )?storagectl (.*)", piece)
            if typed:
                storagectl.main(typed[1].split(), "storagectl", standalone_mode=False)
    assert len(ran) >= len(command.examples)


def test_the_first_page(capsys):
    storagectl.main(["--help"], "storagectl", standalone_mode=False)
    text = capsys.readouterr().out
    for code, meaning in MEANINGS:
        assert f"{int(code):>3}  {meaning}" in text


def test_the_man_page_names_every_command_and_status():
    page = (TREE / "packaging/man/storagectl.1").read_text().replace("\\-", "-")
    for path, _ in PATHS:
        assert " ".join(path) in page, path
    for code, meaning in MEANINGS:
        assert f".B {int(code)}\n{meaning}" in page, code
