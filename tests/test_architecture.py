"""The shape of the code: imports point down, state lives in objects, one place starts processes.

Every rule is a function from one parsed module to the lines that break it, so that the rules are
tested themselves: `test_planted` gives each of them a module that breaks it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: The layers, low to high. A module may import those of lower layers and of its own, as long as no
#: circle comes of it. `storaged` itself is the library's face: its names are loaded when used.
LAYERS = (
    ("storaged.formats.*",),
    ("storaged.errordomain",),
    ("storaged.errors", "storaged.units", "storaged.version"),
    ("storaged.rpc.*",),
    ("storaged.references",),
    ("storaged.concerns",),
    ("storaged.chain",),
    ("storaged.rules", "storaged.traits"),
    ("storaged.facts", "storaged.source", "storaged.target"),
    ("storaged.model", "storaged.job", "storaged.wirenames"),
    ("storaged.xmlread", "storaged.xmlwrite"),
    ("storaged.schema", "storaged.xmlparts"),
    ("storaged.encryptionxml", "storaged.sourcexml"),
    ("storaged.poolxml", "storaged.volxml", "storaged.capabilities"),
    (
        "storaged.access",
        "storaged.atomic",
        "storaged.command",
        "storaged.imagelock",
        "storaged.isolate",
        "storaged.isolatescript",
        "storaged.isolatesession",
        "storaged.mounts",
        "storaged.nbd",
        "storaged.nbdgreeting",
        "storaged.nbdreplies",
        "storaged.paths",
        "storaged.process",
    ),
    ("storaged.deputy", "storaged.deputyscript", "storaged.tool"),
    ("storaged.qsd.*",),
    ("storaged.flow", "storaged.imaging"),
    ("storaged.handleflow",),
    ("storaged.imagerecords",),
    ("storaged.mechanism",),
    ("storaged.udev",),
    ("storaged.abilities",),
    ("storaged.backend",),
    ("storaged.imagebackend",),
    ("storaged.backends.*",),
    (
        "storaged.driverlock",
        "storaged.events",
        "storaged.index",
        "storaged.lease",
        "storaged.loading",
        "storaged.registry",
        "storaged.settings",
        "storaged.state",
        "storaged.transfer",
        "storaged.worker",
    ),
    ("storaged.secrets", "storaged.secrets.*"),
    ("storaged.poolstate",),
    ("storaged.poolfacts",),
    ("storaged.pool",),
    ("storaged.passphrases",),
    (
        "storaged.filters",
        "storaged.look",
        "storaged.making",
        "storaged.scan",
        "storaged.starting",
        "storaged.stopping",
    ),
    ("storaged.sizes",),
    ("storaged.volumes",),
    ("storaged.images", "storaged.streams", "storaged.table"),
    ("storaged.dependants", "storaged.hotplug"),
    (
        "storaged.autostart",
        "storaged.known",
        "storaged.poolcalls",
        "storaged.restore",
        "storaged.watch",
    ),
    ("storaged.imagecalls", "storaged.volumecalls", "storaged.volumequeries"),
    ("storaged.driver",),
    ("storaged.service.*",),
    ("storaged.client.*",),
    ("storaged.engine",),
    ("storaged.ensure", "storaged.named"),
    (
        "storaged.imagehandle",
        "storaged.poolhandle",
        "storaged.request",
        "storaged.secrethandle",
        "storaged.volumehandle",
    ),
    ("storaged.storage",),
    ("storaged",),
    ("storaged.libvirt.*",),
    ("storaged.server.*",),
    ("storaged.daemon.*",),
    ("storaged.cli.*",),
)

#: Who may import what is neither ours nor the standard library's.
THIRD_PARTY = {
    "click": ("storaged.cli",),
    "rich": ("storaged.cli",),
    "lxml": ("storaged",),
    "pyudev": ("storaged",),
    "cryptography": ("storaged.formats",),
    "zstandard": ("storaged.formats",),
    "jeepney": ("storaged.server",),
    "qemu": ("storaged.qsd",),
}

#: Who starts processes. An editor needs the terminal, which no other program of ours gets.
#: The script that shuts a program in runs in a process of its own and becomes that program.
STARTS_PROCESSES = ("storaged.command", "storaged.cli.pool_edit", "storaged.qsd.confine")

MAX_FILE = 400
MAX_FUNCTION = 50

#: Modules that `import storaged` must leave alone: each costs more than all of the rest.
HEAVY = ("lxml", "pyudev", "asyncio", "click", "rich", "ctypes", "subprocess", "inspect")

_MUTABLE_CALLS = {"list", "dict", "set", "bytearray", "defaultdict", "deque", "OrderedDict"}
_MUTABLE_CALLS |= {"Counter", "WeakValueDictionary", "WeakKeyDictionary", "WeakSet"}
_MUTABLE_NODES = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
_MUTATORS = {"append", "extend", "insert", "update", "setdefault", "add", "clear", "pop"}
_MUTATORS |= {"popitem", "remove", "discard", "appendleft", "popleft"}
_STARTERS = ("fork", "forkpty", "system", "popen", "spawn", "posix_spawn", "exec", "startfile")
_EXECUTORS = {"ThreadPoolExecutor", "ProcessPoolExecutor", "to_thread", "run_in_executor"}


@dataclass(frozen=True)
class Module:
    """One file of the product, parsed."""

    name: str
    tree: ast.Module
    lines: int
    package: bool = False

    @classmethod
    def of(cls, name: str, text: str) -> Module:
        return cls(name, ast.parse(text), text.count("\n"))

    def imports(self, *, lazy: bool = True) -> list[tuple[int, str]]:
        """Return line and absolute name of all that is imported.

        :param lazy: count what is imported in functions and for types alone as well: what a module
            speaks of, it knows.
        """
        found = set()
        for node in _nodes(self.tree, lazy=lazy):
            if isinstance(node, ast.Import):
                found |= {(node.lineno, alias.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    found.add((node.lineno, full if full in NAMES else node.module))
        return sorted(found)


def _nodes(tree: ast.AST, *, lazy: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if lazy or not (function or types):
            yield node
            yield from _nodes(node, lazy=lazy)


def _load() -> tuple[Module, ...]:
    modules = []
    for folder, package in ROOTS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            text = path.read_text(encoding="utf-8")
            name = ".".join((package, *parts))
            is_package = path.name == "__init__.py"
            modules.append(Module(name, ast.parse(text), text.count("\n"), is_package))
    return tuple(modules)


#: The folders of the product and their import names.
ROOTS = {"storaged": "storaged", "backends": "storaged.backends", "formats": "storaged.formats"}
MODULES = _load()
NAMES = frozenset(module.name for module in MODULES)


def layer(name: str) -> int | None:
    """Return the layer of a module, counted from the bottom; None if it has none."""
    for rank, patterns in enumerate(LAYERS):
        for pattern in patterns:
            package = pattern.removesuffix(".*")
            if name == package or (pattern != package and name.startswith(package + ".")):
                return rank
    return None


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


Problems = Iterator[tuple[int, str]]
Rule = Callable[[Module], Problems]


def has_a_layer(module: Module) -> Problems:
    if layer(module.name) is None:
        yield 1, "stands in no layer: add it to LAYERS and to docs/architecture.md"


def imports_point_down(module: Module) -> Problems:
    own = layer(module.name)
    for line, name in module.imports():
        if within(name, "storaged"):
            other = layer(name)
            if other is None:
                yield line, f"imports {name}, which stands in no layer"
            elif own is not None and other > own:
                yield line, f"imports {name}, which lies above it"


def imports_are_absolute(module: Module) -> Problems:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "relative import: it breaks where the folder is opened by its path"


def backends_know_no_policy(module: Module) -> Problems:
    policy = ("storaged.driver", "storaged.pool", "storaged.registry", "storaged.rpc")
    if within(module.name, "storaged.backends"):
        for line, name in module.imports():
            if within(name, *policy):
                yield line, f"a backend imports {name}"


def third_party_has_its_place(module: Module) -> Problems:
    for line, name in module.imports():
        top = name.partition(".")[0]
        if top == "storaged" or top in sys.stdlib_module_names:
            continue
        places = THIRD_PARTY.get(top, ())
        outside = within(module.name, "storaged.formats") and "storaged.formats" not in places
        if outside or not within(module.name, *places):
            yield line, f"imports {name}; that may only {places or 'nobody'}"


def has_no_mutable_state(module: Module) -> Problems:
    constants = set()
    for node in module.tree.body:
        targets, value = _assignment(node)
        if not (isinstance(value, _MUTABLE_NODES) or _called(value) in _MUTABLE_CALLS):
            continue
        for name in targets:
            constants.add(name)
            if name.strip("_") != name.strip("_").upper() and not name.startswith("__"):
                yield node.lineno, f"mutable module state: {name}"
    for inner in ast.walk(module.tree):
        if isinstance(inner, ast.Global):
            yield inner.lineno, f"global {', '.join(inner.names)}"
        changed = _changed(inner)
        if changed in constants:
            yield inner.lineno, f"changes the module's {changed}"  # type: ignore[attr-defined]


def _assignment(node: ast.stmt) -> tuple[list[str], ast.expr | None]:
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)], node.value
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id], node.value
    return [], None


def _called(node: ast.expr | None) -> str | None:
    if not isinstance(node, ast.Call):
        return None
    function = node.func.value if isinstance(node.func, ast.Subscript) else node.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else None


def _changed(node: ast.AST) -> str | None:
    """Return the name of what *node* changes in place, None if it changes nothing by name."""
    if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
        return node.value.id if isinstance(node.value, ast.Name) else None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        owner = node.func.value
        if node.func.attr in _MUTATORS and isinstance(owner, ast.Name):
            return owner.id
    return None


def starts_no_process(module: Module) -> Problems:
    if module.name in STARTS_PROCESSES:
        return
    for line, name in module.imports():
        if within(name, "subprocess", "multiprocessing", "pty"):
            yield line, f"imports {name}; use {STARTS_PROCESSES[0]}"
    for line, name in _qualified(module.tree):
        if name.startswith("os.") and name[3:].startswith(_STARTERS):
            yield line, f"{name}; use {STARTS_PROCESSES[0]}"


def uses_no_executor(module: Module) -> Problems:
    for line, name in module.imports():
        if within(name, "concurrent"):
            yield line, f"imports {name}: its threads are joined at exit, ours can be lost"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and node.attr in _EXECUTORS:
            yield node.lineno, f"{node.attr}: its threads are joined at exit, ours can be lost"


def _qualified(tree: ast.Module) -> Problems:
    """Yield ``module.name`` wherever a name of a module is used or imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield node.lineno, f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def is_short(module: Module) -> Problems:
    if module.lines > MAX_FILE:
        yield 1, f"{module.lines} lines, more than {MAX_FILE}"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION:
                yield node.lineno, f"{node.name} has {length} lines, more than {MAX_FUNCTION}"


RULES: tuple[Rule, ...] = (
    has_a_layer,
    imports_point_down,
    imports_are_absolute,
    backends_know_no_policy,
    third_party_has_its_place,
    has_no_mutable_state,
    starts_no_process,
    uses_no_executor,
    is_short,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(rule: Rule) -> None:
    broken = [
        f"{module.name}:{line}: {problem}" for module in MODULES for line, problem in rule(module)
    ]
    assert not broken, "\n" + "\n".join(broken)


def test_modules_are_found() -> None:
    assert {
        "storaged",
        "storaged.errors",
        "storaged.backends",
        "storaged.formats.handle",
    } <= NAMES
    assert all("__pycache__" not in name for name in NAMES)


def circle(modules: Iterable[Module]) -> list[str]:
    """Return the modules of one circle of imports: none can be loaded before the next one is."""
    known = {module.name for module in modules}
    graph = {
        module.name: {name for _, name in module.imports(lazy=False)} & known - {module.name}
        for module in modules
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_circles() -> None:
    assert circle(MODULES) == []


def test_planted_circle() -> None:
    text = "from storaged import {}\n"
    ring = [("job", "units"), ("units", "errors"), ("errors", "job")]
    modules = [Module.of(f"storaged.{name}", text.format(other)) for name, other in ring]
    assert set(circle(modules)) == {"storaged.job", "storaged.units", "storaged.errors"}
    for_types = Module.of("storaged.errors", "if TYPE_CHECKING:\n    import storaged.job")
    assert circle([*modules[:2], for_types]) == []


def imported_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_import_is_light() -> None:
    before, after = imported_by("pass"), imported_by("import storaged")
    assert "storaged" in after
    assert not [name for name in HEAVY if name in after - before]


def test_formats_need_the_standard_library_only() -> None:
    formats = [name for name in NAMES if within(name, "storaged.formats")]
    loaded = imported_by(f"import {', '.join(sorted(formats))}") - imported_by("pass")
    ours = {name for name in loaded if within(name, "storaged")}
    assert ours - {"storaged.version"} <= {"storaged", *formats}
    assert {name.partition(".")[0] for name in loaded - ours} <= {
        *sys.stdlib_module_names,
        "zstandard",
        "cryptography",
    }


PLANTED = (
    (has_a_layer, "storaged.helpers", ""),
    (imports_point_down, "storaged.model", "from storaged.backend import Host"),
    (imports_point_down, "storaged.model", "def f():\n    import storaged.backend"),
    (imports_point_down, "storaged.formats.raw", "from storaged import errors"),
    (imports_point_down, "storaged.formats.raw", "import storaged"),
    (
        imports_point_down,
        "storaged.job",
        "if TYPE_CHECKING:\n    from storaged.backend import Host",
    ),
    (imports_point_down, "storaged.cli.main", "import storaged.helpers"),
    (imports_are_absolute, "storaged.backends.fs", "from ..model import PoolDef"),
    (backends_know_no_policy, "storaged.backends.fs", "import storaged.pool"),
    (third_party_has_its_place, "storaged.pool", "from rich.table import Table"),
    (third_party_has_its_place, "storaged.formats.raw", "import lxml.etree"),
    (third_party_has_its_place, "storaged.cli.main", "import requests"),
    (has_no_mutable_state, "storaged.pool", "pools = {}"),
    (has_no_mutable_state, "storaged.pool", "_pools: dict[str, int] = dict()"),
    (has_no_mutable_state, "storaged.pool", "waiting = collections.deque()"),
    (has_no_mutable_state, "storaged.pool", "pools = defaultdict[str, int](int)"),
    (has_no_mutable_state, "storaged.pool", "def f():\n    global count\n    count = 1"),
    (has_no_mutable_state, "storaged.pool", "KNOWN = {}\ndef f():\n    KNOWN['a'] = 1"),
    (has_no_mutable_state, "storaged.pool", "KNOWN = []\ndef f():\n    KNOWN.append(1)"),
    (starts_no_process, "storaged.backends.fs", "import subprocess"),
    (starts_no_process, "storaged.backends.fs", "from subprocess import run"),
    (starts_no_process, "storaged.backends.fs", "import os\nos.posix_spawn('/bin/true', [], {})"),
    (starts_no_process, "storaged.backends.fs", "from os import fork"),
    (uses_no_executor, "storaged.worker", "from concurrent.futures import ThreadPoolExecutor"),
    (uses_no_executor, "storaged.worker", "import asyncio\nasyncio.to_thread(print)"),
    (is_short, "storaged.pool", "\n" * 401),
    (is_short, "storaged.pool", "def f():\n" + "    pass\n" * 50),
)


@pytest.mark.parametrize(("rule", "name", "text"), PLANTED)
def test_planted(rule: Rule, name: str, text: str) -> None:
    """Each rule sees a module that breaks it."""
    assert list(rule(Module.of(name, text)))


ALLOWED = """
from __future__ import annotations
import os
from storaged.errors import StorageError
__all__ = ["Thing"]
KNOWN = {"a": 1}
_NAMES = ["a"]
TABLE: dict[str, int] = {}
def f(known):
    known = dict(KNOWN)
    known["b"] = 2
    return known.pop("a")
"""


def test_good_code_passes() -> None:
    module = Module.of("storaged.pool", ALLOWED)
    assert [problem for rule in RULES for problem in rule(module)] == []
