"""What ties the repository together: versions, the lock file, the README's promises."""
from __future__ import annotations

import importlib
import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import csist
from csist.cli import build_parser
from csist.networks.registry import run_name, weights_path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "THIRD_PARTY_NOTICES.md")


def extras_of(extra: str) -> set[str]:
    """An extra and all that it includes as "csist[...]"."""
    nested = [Requirement(text) for text in PROJECT["project"]["optional-dependencies"][extra]]
    return {extra}.union(*(extras_of(name) for requirement in nested if requirement.name == "csist" for name in requirement.extras))


def requirements() -> list[Requirement]:
    """Everything that the lock file covers: what is needed to build, to run, and by the extra "test" with all that it includes."""
    project = PROJECT["project"]
    texts = [*PROJECT["build-system"]["requires"], *project["dependencies"]]
    texts += [text for extra in sorted(extras_of("test")) for text in project["optional-dependencies"][extra]]
    return [requirement for requirement in map(Requirement, texts) if requirement.name != "csist"]


def lock_lines() -> list[Requirement]:
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line]


def locked_versions() -> dict[str, Version]:
    """The lock's versions for the Python that runs this test."""
    versions = {}
    for line in lock_lines():
        if line.marker is None or line.marker.evaluate():
            name = canonicalize_name(line.name)
            assert name not in versions, f"requirements.lock has two versions of {name} for this Python"
            versions[name] = Version(next(iter(line.specifier)).version)
    return versions


def blocks(language: str, page: str = "README.md") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)


def shell_commands(page: str = "README.md") -> list[list[str]]:
    """The words of each line, without the variables that it sets before its command."""
    lines = [shlex.split(line, comments=True) for block in blocks("bash", page) for line in block.splitlines()]
    return [list(itertools.dropwhile(lambda word: re.fullmatch(r"[A-Z_]+=.*", word), words)) for words in lines if words]


# Versions


def test_lock_lines_are_exact_pins():
    for line in lock_lines():
        pins = [(pin.operator, "*" in pin.version) for pin in line.specifier]
        assert pins == [("==", False)] and line.url is None and not line.extras, f"{line} is no exact pin"


@pytest.mark.parametrize("requirement", sorted({str(r) for r in requirements()}))
def test_lock_satisfies_the_ranges(requirement):
    requirement = Requirement(requirement)
    if requirement.marker is None or requirement.marker.evaluate():
        assert requirement.specifier.contains(locked_versions()[canonicalize_name(requirement.name)])


def test_lock_covers_every_extra():
    """All but "lab", whose JupyterLab `make lab` adds on top: a reader of the book needs none."""
    assert extras_of("test") == PROJECT["project"]["optional-dependencies"].keys() - {"lab"}
    assert extras_of("lab") <= extras_of("test") | {"lab"}


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert PROJECT["project"]["version"] == csist.__version__ == citation["version"]
    assert f"version = {{{csist.__version__}}}" in README
    assert f"[{csist.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_environment_yml():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (pip,) = [part["pip"] for part in environment["dependencies"] if isinstance(part, dict)]
    (python,) = [part.split("=", 1)[1] for part in environment["dependencies"] if str(part).startswith("python=")]
    assert environment["name"] == "csist" and "-r requirements.lock" in pip and "-e ." in pip
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(python)


def test_citation_is_complete():
    """The fields that the Citation File Format 1.2.0 requires, here and of every reference."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["license"] == PROJECT["project"]["license"]
    assert all(citation.get(field) for field in ("message", "title", "authors"))
    (paper,) = citation["references"]
    assert all(paper.get(field) for field in ("type", "title", "authors", "year", "doi"))
    bibliography = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
    names = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    assert f"author    = {{{names}}}" in bibliography and f"author    = {{{names}}}" in README


def test_licence():
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("BSD 3-Clause License")
    assert PROJECT["project"]["license-files"] == ["LICENSE"]


# The package


def test_public_names_exist():
    assert len(set(csist.__all__)) == len(csist.__all__)
    for name in csist.__all__:
        assert getattr(csist, name) is not None


def test_import_stays_light():
    """`import csist` loads nothing that only figures, widgets or training need."""
    heavy = ("matplotlib", "accelerate", "anywidget", "ipywidgets", "PIL", "tqdm", "yaml", "IPython")
    code = f"import sys, csist; print(*(name for name in {heavy} if name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    # torch itself may load tqdm or yaml; only what torch leaves alone is ours
    plain = subprocess.run([sys.executable, "-c", code.replace("csist;", "torch, numpy, scipy.special;")], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) <= set(plain.stdout.split())
    assert not {"matplotlib", "accelerate", "anywidget"} & set(run.stdout.split())


def test_every_subpackage_is_packaged():
    """setuptools installs the packages that are listed and no others."""
    present = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "csist").rglob("__init__.py")}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == present


def test_installed_command():
    entry = PROJECT["project"]["scripts"]["csist"]
    module, function = entry.split(":")
    assert callable(getattr(importlib.import_module(module), function))


# The README and its neighbours


def test_readme_python_runs(capsys):
    """The example runs as printed, but with fewer frames, and with a cheap method as long as the network has no weights."""
    (code,) = blocks("python")
    assert "size=200" in code and 'method="dista-net"' in code
    code = code.replace("size=200", "size=5")
    if weights_path(run_name("dista-net", 3)) is None:
        code = code.replace('method="dista-net"', 'method="omp"')
    space = {}
    exec(compile(code, "README.md", "exec"), space)
    assert len(space["found"]) == 5 and "CSO-mAP" in capsys.readouterr().out


def test_contributing_example_makes_a_network():
    """The twenty-line network of CONTRIBUTING.md can be made, run and trained."""
    import torch

    from csist.networks.registry import NETWORKS

    (code,) = blocks("python", "CONTRIBUTING.md")
    try:
        exec(compile(code, "CONTRIBUTING.md", "exec"), {"__name__": "example"})
        network = csist.create_network("plain-net", ratio=3, start=False)
        assert network(torch.rand(2, 11, 11)).shape == (2, 33, 33)
        sum(network.loss(torch.rand(2, 11, 11), torch.rand(2, 33, 33)).values()).backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
    finally:
        NETWORKS.pop("plain-net", None)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_shell_examples_exist(page):
    """Every command names a make target, a script or a csist command with options that exist."""
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert shell_commands(page)
    for program, *words in shell_commands(page):
        if program == "make":
            assert words[0] in targets
        elif program == "python":
            assert (ROOT / words[0]).is_file()
        else:
            assert program == "csist", f"{page}: unknown command {program}"
            build_parser().parse_args(words)


def test_readme_commands_of_the_queue():
    """Options of scripts in the README are options of those scripts."""
    for program, *words in shell_commands():
        if program == "python":
            source = (ROOT / words[0]).read_text(encoding="utf-8")
            assert all(f'"{word}"' in source for word in words[1:] if word.startswith("--"))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if not re.match(r"[a-z]+:", link):
            assert (ROOT / link.split("#")[0]).exists(), f"{page} links to {link}, which does not exist"


def test_headline_markers():
    assert README.index("<!-- headline table -->") < README.index("<!-- /headline table -->")
    assert README.count("headline table -->") == 2


def test_axis_convention_is_said_loudly():
    assert re.search(r"\*\*x is the ROW.*y is the COLUMN.*\*\*", README)


# The repository


def project_files() -> list[Path]:
    """Files that are or would be tracked; without git, those of the folders that hold text."""
    try:
        words = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\0")
        return [ROOT / name for name in names if name and (ROOT / name).is_file()]
    except (OSError, subprocess.CalledProcessError):
        folders = ("csist", "reproduce", "tests", "notebooks", "book/chapters")
        return [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file() and "checkpoints" not in path.parts]


def test_no_paths_of_one_machine():
    """A path such as a home directory works on one machine only, and says whose."""
    one_machine = re.compile(r"(?<![\w.:/])/(?:work|root|home/\w+|Users/\w+|mnt/\w+|tmp/(?:env|cache|ipykernel))/|C:\\Users\\")
    suffixes = {".py", ".md", ".ipynb", ".yaml", ".yml", ".toml", ".json", ".js", ".css", ".bib", ".cff", ".sh", ".csv", ".lock", ".txt", ""}
    found = []
    for path in project_files():
        if path.suffix in suffixes and path != Path(__file__).resolve():
            text = path.read_text(encoding="utf-8", errors="replace")
            found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in one_machine.finditer(text)]
    assert not found, found
