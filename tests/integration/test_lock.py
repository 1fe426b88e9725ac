"""The lock is exact, names no index, and fits what pyproject.toml declares."""

from __future__ import annotations

import re
import sys
from importlib.metadata import distributions

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = tuple(PROJECT["optional-dependencies"])
PLATFORMS = {"linux": "Linux", "darwin": "Darwin", "win32": "Windows"}
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")


def environment(python: str, platform: str) -> dict[str, str]:
    return {
        "python_version": python,
        "python_full_version": f"{python}.1",
        "sys_platform": platform,
        "platform_system": PLATFORMS[platform],
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "extra": "",
    }


def lines(lock: str) -> list[str]:
    return [line for line in lock.splitlines() if line and not line.startswith("#")]


def faults(lock: str) -> list[str]:
    """The lines that are more, or less, than a name, one exact public version and a marker."""
    exact = re.compile(r"[a-z0-9-]+==([0-9][0-9a-z.]*)( ; [^#@]+)?")
    return [line for line in lines(lock) if not exact.fullmatch(line) or "://" in line]


def pinned(lock: str, where: dict[str, str]) -> dict[str, list[Version]]:
    versions: dict[str, list[Version]] = {}
    for requirement in map(Requirement, lines(lock)):
        if requirement.marker is None or requirement.marker.evaluate(where):
            (exact,) = requirement.specifier
            versions.setdefault(canonicalize_name(requirement.name), []).append(Version(exact.version))
    return versions


def declared(*extras: str) -> list[Requirement]:
    """What the project requires, with these extras."""
    optional = PROJECT["optional-dependencies"]
    every = [*PROJECT["dependencies"], *(text for extra in extras for text in optional[extra])]
    return [one for one in map(Requirement, every) if one.name != PROJECT["name"]]


def test_every_line_is_a_name_and_one_exact_public_version() -> None:
    assert len(lines(LOCK)) > len(declared(*EXTRAS))
    assert faults(LOCK) == []


@pytest.mark.parametrize(
    "line",
    [
        "torch==2.13.0+cpu",
        "torch>=2.13.0",
        "torch==2.*",
        "torch==2.13.0 --hash=sha256:00",
        "torch @ https://example.org/torch.whl",
        "torch @ file:///wheels/torch.whl",
        "--extra-index-url https://example.org/simple",
        "-e .",
    ],
)
def test_a_line_that_belongs_to_one_machine_or_index_is_seen(line: str) -> None:
    assert faults(f"numpy==2.2.6 ; python_full_version < '3.11'\n{line}\n") == [line]


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_each_dependency_has_one_version_in_its_range(python: str, platform: str) -> None:
    where = environment(python, platform)
    versions = pinned(LOCK, where)
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}
    for requirement in declared(*EXTRAS):
        if requirement.marker is None or requirement.marker.evaluate(where):
            (version,) = versions[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), (requirement, version)


def test_what_the_installed_dependencies_require_is_locked_too() -> None:
    where = environment(f"{sys.version_info[0]}.{sys.version_info[1]}", sys.platform)
    versions = pinned(LOCK, where)
    installed = {canonicalize_name(one.metadata["Name"]): one.requires or [] for one in distributions()}
    names = {canonicalize_name(one.name) for one in declared(*EXTRAS)} & set(installed) & set(versions)
    assert "torch" in names
    for name in names:
        for needed in map(Requirement, installed[name]):
            if needed.marker is None or needed.marker.evaluate(where):
                assert canonicalize_name(needed.name) in versions, (name, needed)
