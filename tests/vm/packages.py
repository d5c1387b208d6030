"""Debian packages for the guest: those missing here, fetched once, unpacked, never installed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

#: The kernel with all its modules; the one for clouds has no 9p.
KERNEL = "linux-image-amd64"


class PreparationError(Exception):
    """What the guest is made of cannot be had; the text says what and why."""


def run(*argv: str | Path, cwd: Path | None = None) -> str:
    """Run a program and return what it printed.

    :raise PreparationError: it failed, or is not installed; with its errors.
    """
    words = " ".join(map(str, argv))
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
        )
    except FileNotFoundError as err:
        raise PreparationError(f"{argv[0]} is not installed: make setup, as root") from err
    if done.returncode != 0:
        raise PreparationError(f"{words}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def parse_list(text: str) -> tuple[str, ...]:
    """Return the names of a list of packages: one a line, # starts a comment."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    names = tuple(line for line in lines if line)
    for name in names:
        if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", name):
            raise PreparationError(f"'{name}' is no name of a package")
    return names


def fingerprint(names: Iterable[str]) -> str:
    """Return a digest of what a layer of these packages depends on: what is installed here."""
    installed = run(
        "dpkg-query", "--show", "--showformat=${db:Status-Abbrev}${Package} ${Version}\n"
    )
    digest = hashlib.sha256("\n".join(sorted(names)).encode())
    digest.update("\n".join(sorted(installed.splitlines())).encode())
    # how a layer is made, too
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()[:16]


def parse_simulation(text: str) -> dict[str, str]:
    """Return the versions by name that ``apt-get install --simulate`` would install."""
    return dict(re.findall(r"^Inst (\S+) (?:\[\S+\] )?\((\S+)", text, re.MULTILINE))


def missing(names: Iterable[str]) -> dict[str, str]:
    """Return the version of each package that must be added for *names* to work here.

    They are asked of a simulation: ``--print-uris`` leaves out what was downloaded before.
    """
    ask = ("apt-get", "install", "--simulate", "--no-install-recommends", "--yes", *names)
    try:
        return parse_simulation(run(*ask))
    except PreparationError:
        run("apt-get", "update", "-qq")
        return parse_simulation(run(*ask))


def kernel_package() -> str:
    """Return the package that the newest kernel is in."""
    answer = run("apt-cache", "depends", "--no-recommends", KERNEL)
    found = re.search(r"^\s*Depends: (linux-image-\S+)", answer, re.MULTILINE)
    if found is None:
        raise PreparationError(f"apt knows of no kernel behind {KERNEL}:\n{answer}")
    return found[1]


def candidate(name: str) -> str:
    """Return the version of a package that apt would install."""
    answer = run("apt-cache", "policy", name)
    found = re.search(r"^\s*Candidate: (\S+)", answer, re.MULTILINE)
    if found is None or found[1] == "(none)":
        raise PreparationError(f"apt has no version of {name}")
    return found[1]


def fetch(wanted: dict[str, str], place: Path) -> list[Path]:
    """Download packages (versions by name), those that are not in *place* yet; return the files."""
    place.mkdir(parents=True, exist_ok=True)
    absent = [name for name in wanted if _file(place, name, wanted[name]) is None]
    if absent:
        words = [f"{name}={wanted[name]}" for name in absent]
        fetching = ("apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", *words)
        try:
            run(*fetching, cwd=place)
        except PreparationError:  # the lists of packages are older than the archive
            run("apt-get", "update", "-qq")
            run(*fetching, cwd=place)
    files = {name: _file(place, name, version) for name, version in wanted.items()}
    lost = [name for name, file in files.items() if file is None]
    if lost:
        raise PreparationError(f"apt-get download did not bring {', '.join(lost)}")
    return [file for file in files.values() if file is not None]


def _file(place: Path, name: str, version: str) -> Path | None:
    return next(iter(place.glob(f"{name}_{version.replace(':', '%3a')}_*.deb")), None)


def unpack(files: Iterable[Path], layer: Path) -> None:
    """Unpack packages over each other."""
    for file in files:
        run("dpkg-deb", "--extract", file, layer)
    _merge_into_usr(layer)


def _merge_into_usr(layer: Path) -> None:
    """Move /bin, /lib and their like below /usr: as directories they would hide the links to it."""
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        source = layer / name
        if source.is_dir() and not source.is_symlink():
            (layer / "usr" / name).mkdir(parents=True, exist_ok=True)
            run("cp", "--archive", "--link", f"{source}/.", layer / "usr" / name)
            shutil.rmtree(source)
