"""The three distributions: the contents of the built files, and that the installed copies work outside the checkout."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECTS = {
    "justright": ROOT,
    "justright_zoo": ROOT / "packages/justright-zoo",
    "justright_vllm": ROOT / "packages/justright-vllm",
}
MEGABYTE = 1_000_000
LARGEST = {"justright": 2, "justright_zoo": 80, "justright_vllm": 0.1}  # MB; PyPI allows 100 per file


@dataclass
class Built:
    """The built files, and the folder that the wheels are installed into."""

    wheels: dict[str, zipfile.ZipFile]
    sdist: Path
    site: Path

    def text(self, package: str, name: str) -> str:
        """A file of a wheel's dist-info folder."""
        [file] = [one for one in self.wheels[package].namelist() if one.endswith(f".dist-info/{name}")]
        return self.wheels[package].read(file).decode()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build without a network: the core's wheel from its sdist, as pip does; install without dependencies."""
    dist, site = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("site")
    _python("-m", "build", "--no-isolation", "--outdir", dist, ROOT)
    for project in ("justright_zoo", "justright_vllm"):
        _python("-m", "hatchling", "build", "-t", "wheel", "-d", dist, cwd=PROJECTS[project])
    files = {package: next(dist.glob(f"{package}-*.whl")) for package in PROJECTS}
    _python(
        "-m", "pip", "install", "--no-index", "--no-deps", "--no-compile", "--target", site, *files.values()
    )
    wheels = {package: zipfile.ZipFile(file) for package, file in files.items()}
    return Built(wheels, next(dist.glob("justright-*.tar.gz")), site)


def _python(*arguments: object, cwd: Path = ROOT, path: Path | None = None) -> str:
    """Run Python; with ``path``, on that folder and the installed dependencies, without the checkout's PYTHONPATH."""
    environment = {**os.environ, "COLUMNS": "200"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _sources(package: str) -> set[str]:
    root = PROJECTS[package] / "src"
    files = (file for file in (root / package).rglob("*") if file.is_file() and file.suffix != ".pyc")
    return {file.relative_to(root).as_posix() for file in files}


@pytest.mark.parametrize("package", PROJECTS)
def test_a_wheel_holds_its_package_with_all_data_and_nothing_else(built: Built, package: str) -> None:
    names = {name for name in built.wheels[package].namelist() if ".dist-info/" not in name}
    assert names == _sources(package)


def test_the_wheels_hold_the_files_that_are_read_at_run_time(built: Built) -> None:
    core = built.wheels["justright"].namelist()
    assert {"justright/py.typed", "justright/serve/dashboard/index.html"} <= set(core)
    assert [name for name in core if name.endswith(".jinja")]
    zoo = built.wheels["justright_zoo"].namelist()
    assert {"justright_zoo/py.typed", "justright_zoo/models/moe/model.safetensors"} <= set(zoo)


@pytest.mark.parametrize("package", PROJECTS)
def test_a_wheel_is_small_and_carries_its_licence(built: Built, package: str) -> None:
    wheel = built.wheels[package]
    assert Path(str(wheel.filename)).stat().st_size < LARGEST[package] * MEGABYTE
    licences = [name for name in wheel.namelist() if re.search(r"\.dist-info/licenses/.*LICENSE$", name)]
    assert [wheel.read(name) for name in licences] == [(ROOT / "LICENSE").read_bytes()]


def test_the_sdist_holds_the_package_and_no_weights(built: Built) -> None:
    assert built.sdist.stat().st_size < LARGEST["justright"] * MEGABYTE
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    extra = {
        "CHANGELOG.md",
        "CITATION.cff",
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "PKG-INFO",
        ".gitignore",
    }
    assert names - {""} == {f"src/{name}" for name in _sources("justright")} | extra


def test_the_version_is_the_same_everywhere(built: Built) -> None:
    [version] = re.findall(
        r'^__version__ = "(.+)"', (ROOT / "src/justright/__init__.py").read_text(), re.MULTILINE
    )
    assert HeaderParser().parsestr(built.text("justright", "METADATA"))["Version"] == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    for package in ("justright_zoo", "justright_vllm"):
        [needed] = [
            one for one in _requirements(built, package) if one.name == "justright" and not one.marker
        ]
        assert needed.specifier.contains(version)
        assert str(needed.specifier)


def _requirements(built: Built, package: str) -> list[Requirement]:
    metadata = HeaderParser().parsestr(built.text(package, "METADATA"))
    return [Requirement(one) for one in metadata.get_all("Requires-Dist", [])]


@pytest.mark.parametrize("package", PROJECTS)
def test_the_description_has_no_relative_links(built: Built, package: str) -> None:
    description = str(HeaderParser().parsestr(built.text(package, "METADATA")).get_payload())
    assert description.startswith(f"# {package.replace('_', '-')}\n")
    assert len(description) > 500
    assert [
        link for link in re.findall(r"\]\(([^)]*)\)", description) if not link.startswith("https://")
    ] == []
    assert "()" not in description


@pytest.mark.parametrize("package", PROJECTS)
def test_every_imported_package_is_declared(built: Built, package: str) -> None:
    needed = _requirements(built, package) + _requirements(built, "justright")
    declared = {canonicalize_name(one.name) for one in needed}
    # The core uses the zoo if it is installed, without requiring it; pydantic pins its own core.
    own = {*PROJECTS, "pydantic_core"}
    carriers = importlib.metadata.packages_distributions()
    undeclared = {}
    for name in built.wheels[package].namelist():
        if not name.endswith(".py"):
            continue
        for top in _imported(built.wheels[package].read(name)) - own - sys.stdlib_module_names:
            if not declared & {canonicalize_name(one) for one in carriers.get(top, [top])}:
                undeclared[top] = name
    assert undeclared == {}


def _imported(source: bytes) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_every_entry_point_loads_from_the_installed_copy(built: Built, tmp_path: Path) -> None:
    wanted = set()
    for package in PROJECTS:
        points = configparser.ConfigParser()
        points.optionxform = str  # type: ignore[assignment,method-assign]
        points.read_string(built.text(package, "entry_points.txt"))
        wanted |= {
            (group, name, value) for group in points.sections() for name, value in points[group].items()
        }
    assert ("console_scripts", "justright", "justright.cli:main") in wanted
    assert {group for group, _, _ in wanted} > {"justright.models", "vllm.general_plugins"}
    script = (
        "import importlib.metadata as m, sys\n"
        f"for group, name, value in {sorted(wanted)!r}:\n"
        "    m.EntryPoint(name, value, group).load()\n"
        "    print(sys.modules[value.partition(':')[0]].__file__)\n"
    )
    files = _python("-c", script, cwd=tmp_path, path=built.site).split()
    assert len(files) == len(wanted)
    assert all(Path(file).is_relative_to(built.site) for file in files), files


def test_the_console_script_works_outside_the_checkout(built: Built, tmp_path: Path) -> None:
    program = built.site / "bin/justright"
    version = HeaderParser().parsestr(built.text("justright", "METADATA"))["Version"]
    assert _python(program, "--version", cwd=tmp_path, path=built.site) == f"justright {version}\n"
    found = _python(program, "path", "zoo:dense", cwd=tmp_path, path=built.site).strip()
    assert found == str(built.site / "justright_zoo/models/dense")
    asked = ("generate", "zoo:dense", "-p", "The", "--max-tokens", "2", "--json")
    assert '"text"' in _python(program, *asked, cwd=tmp_path, path=built.site)
