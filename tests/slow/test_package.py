from __future__ import annotations

import ast
import hashlib
import json
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

from stlm_kd.artifacts.provenance import Program, program, program_in
from stlm_kd.errors import MissingResourceError, RecipeError, UsageError
from stlm_kd.publishing.program import program_of
from stlm_kd.recipe.lock import Lock, Made
from tests.support.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LINKS = ("cli", "eval", "recipes")
LEFT_OUT = ("build", "dist", "runs", "*.egg-info", "__pycache__", ".[!c]*")


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
        for pattern in ("*.py", "*.yaml", "*.json", "*.j2", "*.css", "*.pyi", "py.typed", "tested.txt")
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


def git(tree: Path, *words: str) -> str:
    """Git with a user, and with permissions that depend on the umask."""
    settings = ["user.name=t", "user.email=t@example.org", "tar.umask=user"]
    options = [word for setting in settings for word in ("-c", setting)]
    return subprocess.run(
        ["git", *options, "-C", str(tree), *words], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture(scope="session")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one commit, tagged as a release."""
    tree = checkout(tmp_path_factory.mktemp("tagged") / "tree")
    shutil.copy(ROOT / ".gitignore", tree)  # byte code is no change
    git(tree, "init", "--quiet")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "--message", "first", "--date", "2026-01-02T03:04:05Z")
    git(tree, "tag", f"v{program().version}")
    return tree


def released(tree: Path, *options: str, umask: int = 0o022) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ".ci/release.py", *options],
        cwd=tree,
        umask=umask,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="session")
def release(tagged: Path) -> Path:
    """The wheel of that commit."""
    ended = released(tagged)
    assert ended.returncode == 0, ended.stderr
    path, digest = ended.stdout.splitlines()
    assert digest == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert (tagged / "dist/SHA256SUMS").read_text() == f"{digest}  {Path(path).name}\n"
    return Path(path)


@pytest.mark.long
def test_the_same_commit_gives_the_same_wheel_elsewhere(tagged: Path, release: Path, tmp_path: Path) -> None:
    subprocess.run(
        ["git", "clone", "--quiet", str(tagged), "elsewhere"], cwd=tmp_path, umask=0o077, check=True
    )
    (tmp_path / "elsewhere" / "cli" / "untracked.py").write_text("")
    ended = released(tmp_path / "elsewhere", "--allow-dirty", umask=0o077)
    assert ended.returncode == 0, ended.stderr
    assert "rehearsal: not committed: cli/untracked.py" in ended.stderr
    assert Path(ended.stdout.splitlines()[0]).read_bytes() == release.read_bytes()


def test_a_release_is_refused_without_a_tag_of_its_version_and_with_changes(
    tagged: Path, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    git(tmp_path, "clone", "--quiet", "--no-tags", str(tagged), str(tree))
    git(tree, "tag", "v9")
    (tree / "README.md").write_text("changed")
    ended = released(tree)
    assert ended.returncode == 1
    assert "not committed: README.md" in ended.stderr
    assert f"v9 found at the commit; expected v{program().version}: git tag" in ended.stderr
    assert not (tree / "dist").exists()


def test_a_checkout_an_installation_and_a_wheel_are_the_same_program(
    wheel: Path, installed: SimpleNamespace, tagged: Path
) -> None:
    code = (
        "import json; from dataclasses import asdict; from stlm_kd.artifacts.provenance import program; "
        "print(json.dumps(asdict(program())))"
    )
    here = Program(**json.loads(installed.run("-c", code)))
    there = Program(**json.loads(run(["-c", code], tagged, PYTHONPATH=str(tagged))))
    digest = f"sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}"
    assert here == program_in(wheel) == Program(program().version, None, digest, here.source)
    assert there.code == f"git:{git(tagged, 'rev-parse', 'HEAD').strip()}"
    assert there.source == here.source == program().source
    (tagged / "cli" / "main.py").write_text("# changed")
    changed = Program(**json.loads(run(["-c", code], tagged, PYTHONPATH=str(tagged))))
    git(tagged, "checkout", "--quiet", ".")
    assert changed.code == f"{there.code} dirty" and changed.source != there.source


def lock(**made: str) -> Lock:
    return Lock(recipe=f"sha256:{'0' * 64}", made=Made(**{"by": "stlm-kd 0.1.0", **made}))


def test_a_wheel_is_compared_with_the_program_of_a_lock(wheel: Path, tmp_path: Path) -> None:
    known = program_in(wheel)
    other = f"sha256:{'1' * 64}"
    assert program_of(lock(wheel=known.wheel, source=other), wheel=wheel).same == "wheel"
    assert program_of(lock(wheel=other, source=known.source), wheel=wheel).same == "source"
    assert program_of(lock(code=f"git:{'a' * 40}")).commands == (
        f"git checkout {'a' * 40} && make release ALLOW_DIRTY=1",
    )
    assert program_of(lock(wheel=other)).commands == ("pip download --no-deps stlm-kd==0.1.0",)
    for unknown in ({"code": f"git:{'a' * 40} dirty"}, {"code": "git:a; rm x"}, {"by": "stlm-kd 1; rm x"}):
        assert program_of(lock(**unknown)).commands == ()
    for made, message in (({"wheel": other, "source": other}, f"made.wheel: {known.wheel}"), ({}, "neither")):
        with pytest.raises(RecipeError, match=message):
            program_of(lock(**made), wheel=wheel, environment=tmp_path / "never")
    assert not (tmp_path / "never").exists()
    (tmp_path / "no.whl").write_text("no")
    with pytest.raises(MissingResourceError, match="cannot be read as a wheel"):
        program_of(lock(source=other), wheel=tmp_path / "no.whl")
    with pytest.raises(UsageError, match="exists"):
        program_of(lock(source=known.source), wheel=wheel, environment=tmp_path)


@pytest.mark.long
def test_the_wheel_of_a_lock_is_installed_into_a_new_environment(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With this environment's packages in place of downloads."""
    monkeypatch.setenv("PIP_NO_DEPS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(yaml.__file__).parents[1]))
    there = tmp_path / "environment"
    made = lock(source=program_in(wheel).source)
    assert program_of(made, wheel=wheel, environment=there).environment == there
    (installed,) = there.glob("lib/python*/site-packages/stlm_kd/__init__.py")
    assert installed.is_file()
