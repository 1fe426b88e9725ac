"""The versions of Python and of the packages, against the declared ranges and those that were tested."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata, resources

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from stlm_kd.doctor.finding import Finding


def check_versions() -> Iterator[Finding]:
    """A fault for each package that is missing or out of its range; a warning where it is not as tested."""
    try:
        own = metadata.distribution("stlm-kd")
    except metadata.PackageNotFoundError:
        yield Finding("versions", "warning", "stlm-kd is not installed", "pip install -e . in its checkout")
        return
    python, needed = platform.python_version(), own.metadata["Requires-Python"] or ""
    if Version(python) not in SpecifierSet(needed):
        cure = f"install Python {needed}, and stlm-kd in an environment of it"
        yield Finding("Python", "fault", f"{python}; expected {needed}", cure)
    else:
        yield Finding("Python", "ok", python)
    required = [Requirement(text) for text in own.requires or ()]
    needed_here = [one for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    tested, findings = tested_versions(), []
    for one in needed_here:
        findings += _check(one, tested.get(one.name))
    yield from findings
    if not findings:
        yield Finding("versions", "ok", f"stlm-kd {own.version}, {len(needed_here)} packages as tested")


def tested_versions() -> dict[str, str]:
    """The versions of this program's requirements with which it was tested, for this Python."""
    lines = resources.files("stlm_kd.doctor").joinpath("tested.txt").read_text("utf-8").splitlines()
    parsed = [Requirement(line) for line in lines]
    return {
        one.name: str(one.specifier).removeprefix("==")
        for one in parsed
        if one.marker is None or one.marker.evaluate()
    }


def _check(one: Requirement, tested: str | None) -> list[Finding]:
    name, cure = f"version of {one.name}", f"pip install '{one.name}{one.specifier}'"
    try:
        found = Version(metadata.version(one.name))
    except metadata.PackageNotFoundError:
        return [Finding(name, "fault", f"not installed; expected {one.specifier}", cure)]
    except InvalidVersion as error:
        return [Finding(name, "fault", f"{error}; expected {one.specifier}", cure)]
    if not one.specifier.contains(found, prereleases=True):
        return [Finding(name, "fault", f"{found}; expected {one.specifier}", cure)]
    if tested is not None and found.public != tested:
        found_text = f"{found}; within {one.specifier}, tested with {tested}"
        return [Finding(name, "warning", found_text, f"if it fails, pip install {one.name}=={tested}")]
    return []
