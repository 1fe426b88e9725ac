from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from email.parser import HeaderParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement

from tests.support.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LINKS = ("cli", "eval", "recipes")
LEFT_OUT = ("build", "dist", "runs", "*.egg-info", "__pycache__", ".*")


@pytest.fixture(scope="session")
def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def checkout(folder: Path, *, links: bool = True) -> Path:
    """A copy of the tree: building writes into it."""
    shutil.copytree(ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    if not links:
        for name in LINKS:
            (folder / "stlm_kd" / name).unlink()
    return folder


def run(arguments: Sequence[str], folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": "", "PYTHONWARNINGS": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(tree: Path, kind: str, to: Path) -> Path:
    """What pip asks the backend for, in an environment that has it."""
    program = f"from setuptools import build_meta; build_meta.build_{kind}({str(to)!r})"
    to.mkdir()
    run(["-c", program], tree)
    (built,) = to.iterdir()
    return built


def install(wheel: Path, to: Path) -> Path:
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", "--no-compile"]
    run(["-m", "pip", "install", *options, "--target", str(to), str(wheel)], wheel.parent)
    return to


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return build(checkout(folder / "tree"), "wheel", folder / "built")


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The wheel on the path of an interpreter in an empty folder."""
    target = install(wheel, tmp_path_factory.mktemp("installed") / "site")
    empty = tmp_path_factory.mktemp("empty")
    return SimpleNamespace(
        target=target, run=lambda *arguments: run(arguments, empty, PYTHONPATH=str(target), COLUMNS="120")
    )


def test_three_links_lead_to_the_folders_at_the_top() -> None:
    for name in LINKS:
        link = ROOT / "stlm_kd" / name
        assert link.is_symlink() and link.readlink() == Path("..", name)
        assert link.resolve() == ROOT / name


def test_packages_are_the_folders_with_modules(pyproject: dict) -> None:
    found = {"stlm_kd"}
    for top, package in [("stlm_kd", "stlm_kd"), *((name, f"stlm_kd.{name}") for name in LINKS)]:
        for init in (ROOT / top).rglob("__init__.py"):
            inside = init.parent.relative_to(ROOT / top).parts
            if top == "stlm_kd" and inside and inside[0] in LINKS:
                continue  # where links are followed
            found.add(".".join([package, *inside]))
    listed = pyproject["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(found)


def test_every_folder_with_a_module_is_a_package() -> None:
    for top in ("stlm_kd", *LINKS):
        for module in (ROOT / top).rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), module


def test_the_folders_at_the_top_are_imported_as_parts_of_the_package() -> None:
    for top in ("stlm_kd", "tests", "benchmarks", *LINKS):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_bytes())):
                imported = (
                    [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or ""]
                    if isinstance(node, ast.ImportFrom) and node.level == 0
                    else []
                )
                assert not {name.split(".")[0] for name in imported} & set(LINKS), path


def test_the_wheel_holds_the_package_alone_and_all_of_it(wheel: Path) -> None:
    in_tree = {
        Path("stlm_kd", *((top,) if top != "stlm_kd" else ()), path.relative_to(ROOT / top)).as_posix()
        for top in ("stlm_kd", *LINKS)
        for pattern in ("*.py", "*.yaml", "*.json", "*.j2", "*.css", "py.typed")
        for path in (ROOT / top).rglob(pattern)
    }
    held = names(wheel)
    metadata = {name for name in held if name.split("/")[0].endswith(".dist-info")}
    assert held - metadata == in_tree
    assert metadata
    assert {
        "stlm_kd/py.typed",
        "stlm_kd/recipes/sample-two-teachers.yaml",
        "stlm_kd/reporting/templates/run_page.html.j2",
        "stlm_kd/reporting/templates/style.css",
        "stlm_kd/recipes/objectives/distilbert.yaml",
        "stlm_kd/eval/tasks/blimp.yaml",
    } <= held


def test_a_checkout_without_links_gives_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    without = build(checkout(tmp_path / "tree", links=False), "wheel", tmp_path / "built")
    assert names(without) == names(wheel)


def test_the_source_archive_gives_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    archive = build(checkout(tmp_path / "tree"), "sdist", tmp_path / "archive")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "unpacked", filter="data")
    (tree,) = (tmp_path / "unpacked").iterdir()
    assert names(build(tree, "wheel", tmp_path / "built")) == names(wheel)


def test_the_installed_package_runs_from_an_empty_folder(installed: SimpleNamespace) -> None:
    program = "import stlm_kd.cli, stlm_kd.recipes; print(stlm_kd.cli.__file__, stlm_kd.recipes.__file__)"
    places = installed.run("-c", program).split()
    assert all(Path(place).is_relative_to(installed.target) for place in places)
    helped = installed.run("-m", "stlm_kd", "--help")
    assert "distill" in helped and "adapt-teacher" in helped


def test_the_installed_package_lists_the_recipes_and_shows_one(installed: SimpleNamespace) -> None:
    listed = installed.run("-m", "stlm_kd", "recipe", "list")
    recipes = sorted((ROOT / "recipes").glob("*.yaml"))
    own = listed.partition("\n\n")[0].splitlines()[1:]
    assert [line.split()[0] for line in own] == [path.stem for path in recipes]
    shown = installed.run("-m", "stlm_kd", "recipe", "show", recipes[0].stem)
    assert yaml.safe_load(shown) == yaml.safe_load(recipes[0].read_text())


def test_the_installed_package_knows_its_lists_of_objectives(installed: SimpleNamespace) -> None:
    lists = sorted(path.stem for path in (ROOT / "recipes" / "objectives").glob("*.yaml"))
    program = (
        "from stlm_kd.recipe.locate import built_in_objectives; "
        "print(*(entry.name for entry in built_in_objectives()))"
    )
    assert installed.run("-c", program).split() == lists
    named = ["recipe", "validate", "sample-sentiment", "objectives=logits"]
    assert ": OK, hash " in installed.run("-m", "stlm_kd", *named)


def test_the_command_of_the_wheel_leads_to_the_command_line(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (points,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
        assert "stlm-kd = stlm_kd.cli.main:app" in archive.read(points).decode()


@pytest.mark.parametrize("links", [True, False])
def test_an_editable_install_leads_to_the_tree(links: bool, tmp_path: Path) -> None:
    tree = checkout(tmp_path / "tree", links=links)
    target = install(build(tree, "editable", tmp_path / "built"), tmp_path / "site")
    # -S: what this environment has installed in the same way would come first.
    program = (
        f"import site; site.addsitedir({str(target)!r})\n"
        "from importlib.util import find_spec\n"
        "for name in ('errors', 'cli', 'eval', 'recipes'): print(find_spec('stlm_kd.' + name).origin)"
    )
    places = run(["-S", "-c", program], tmp_path / "built").split()
    assert [Path(place).resolve().relative_to(tree.resolve()).as_posix() for place in places] == [
        "stlm_kd/errors.py",
        *(f"{name}/__init__.py" for name in LINKS),
    ]


def test_deepspeed_is_required_on_linux_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        fields = HeaderParser().parsestr(archive.read(metadata).decode())
    (deepspeed,) = (
        requirement
        for requirement in map(Requirement, fields.get_all("Requires-Dist") or [])
        if requirement.name == "deepspeed"
    )
    assert deepspeed.marker is not None
    assert deepspeed.marker.evaluate({"sys_platform": "linux"})
    assert not deepspeed.marker.evaluate({"sys_platform": "darwin"})
    assert not deepspeed.marker.evaluate({"sys_platform": "win32"})
