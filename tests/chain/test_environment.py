"""One environment in three files: pyproject.toml (ranges), the lock (pins), environment.yml."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from sgdm_utils.workflow import paths

ROOT = paths.project_root()
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIRED = [
    Requirement(line)
    for line in [
        *PROJECT["dependencies"],
        *PROJECT["optional-dependencies"]["dev"],
        *PROJECT["optional-dependencies"]["live"],
    ]
]


def entries() -> list[tuple[Requirement, list[str]]]:
    """Return every locked requirement with its hashes."""
    found = []
    for block in re.split(r"\n(?=[A-Za-z0-9])", re.sub(r"^\s*#.*\n", "", LOCK, flags=re.M)):
        first, *rest = block.replace("\\\n", "\n").strip().splitlines()
        hashes = [line.strip() for line in rest if line.strip().startswith("--hash=")]
        found.append((Requirement(first.strip()), hashes))
    return found


def pins(name: str) -> list[Version]:
    """Return the locked versions of a package; several where they differ by Python version."""
    wanted = canonicalize_name(name)
    return [
        Version(next(iter(requirement.specifier)).version)
        for requirement, _ in entries()
        if canonicalize_name(requirement.name) == wanted
    ]


def pinned_here(name: str) -> Version:
    """Return the version that the lock has for this interpreter."""
    wanted = canonicalize_name(name)
    (version,) = (
        Version(next(iter(requirement.specifier)).version)
        for requirement, _ in entries()
        if canonicalize_name(requirement.name) == wanted
        and (requirement.marker is None or requirement.marker.evaluate())
    )
    return version


def test_the_lock_is_read_whole():
    assert len(entries()) == len(re.findall(r"^[A-Za-z0-9][^\n]*==", LOCK, re.MULTILINE)) > 100


@pytest.mark.parametrize("requirement", REQUIRED, ids=[r.name for r in REQUIRED])
def test_every_dependency_is_locked_within_its_range(requirement):
    versions = pins(requirement.name)
    assert versions, f"{requirement.name} is not in requirements.lock: run make lock"
    for version in versions:
        assert requirement.specifier.contains(version, prereleases=True), (
            f"{requirement} in pyproject.toml, {version} in requirements.lock: run make lock"
        )


def test_every_locked_package_is_pinned_and_has_hashes():
    for requirement, hashes in entries():
        (specifier,) = requirement.specifier
        assert specifier.operator == "==" and "*" not in specifier.version, requirement
        assert hashes, f"{requirement} has no hash"
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", h) for h in hashes), requirement


def test_the_lock_names_no_address():
    for forbidden in ("http:", "https:", "://", "--index", "--find-links", "--extra-index", " @ "):
        assert forbidden not in LOCK


def test_torch_and_torchvision_are_a_matching_pair():
    """torchvision is compiled against one version of torch, which its metadata name."""
    here = {name: Version(metadata.version(name)) for name in ("torch", "torchvision")}
    assert Version(here["torchvision"].public) == pinned_here("torchvision")
    assert here["torch"].local == here["torchvision"].local  # +cpu, or neither
    (needed,) = (
        Requirement(line)
        for line in metadata.requires("torchvision")
        if Requirement(line).name == "torch"
    )
    assert needed.specifier.contains(pinned_here("torch")), needed
    import torch
    import torchvision  # noqa: F401 - a wrong pair fails here or on the next line

    assert torch.ops.torchvision.nms


def test_what_is_installed_is_what_is_locked():
    for requirement in REQUIRED:
        installed = Version(Version(metadata.version(requirement.name)).public)  # +cpu is as good
        assert installed == pinned_here(requirement.name), (
            f"{requirement.name} {installed} is installed: make demo and make test install the lock"
        )


def test_conda_installs_the_same_lock_on_a_supported_python():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (pip,) = (entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))
    assert pip == ["-r requirements.lock"]  # nothing beside it: hashes are all or nothing
    others = {
        d.split("=")[0]: d.partition("=")[2] for d in conda["dependencies"] if d != {"pip": pip}
    }
    assert set(others) == {"python", "pip"}
    supported = SpecifierSet(PROJECT["requires-python"])
    assert supported.contains(Version(f"{others['python']}.0"))
    assert supported.contains(Version(".".join(map(str, sys.version_info[:3]))))


def test_makefile_and_pyproject_name_the_same_pythons():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.search(r"\((\d+), (\d+)\) <= sys.version_info < \((\d+), (\d+)\)", makefile)
    low, high = ".".join(found.groups()[:2]), ".".join(found.groups()[2:])
    assert SpecifierSet(PROJECT["requires-python"]) == SpecifierSet(f">={low},<{high}")


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-cpu.lock"])
def test_make_installs_the_lock_that_is_asked_for_and_checks_it(lock, tmp_path):
    """Builds without CUDA come from PyTorch's registry, and only when their lock is asked for."""
    done = subprocess.run(
        ["make", "-n", "environment", f"LOCK={lock}", f"VIRTUAL_ENV={tmp_path}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    (line,) = re.findall(r"pip install --require-hashes.*", done.stdout)
    assert f"-r {lock}" in line and f"cksum {lock} " in done.stdout
    assert ("--extra-index-url" in line) == (lock == "requirements-cpu.lock")


def test_the_lock_without_cuda_has_the_same_pins():
    recipe = subprocess.run(
        ["make", "-n", "lock-cpu"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    assert "--generate-hashes" in recipe and recipe[recipe.index("--torch-backend") + 1] == "cpu"
    assert recipe[recipe.index("--constraints") + 1] == "requirements.lock"
    extras = [recipe[i + 1] for i, word in enumerate(recipe) if word == "--extra"]
    usual = subprocess.run(["make", "-n", "lock"], cwd=ROOT, capture_output=True, text=True).stdout
    assert extras == re.findall(r"--extra (\S+)", usual)


def test_the_lock_has_what_an_installation_without_build_isolation_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for line in project["build-system"]["requires"]:
        requirement = Requirement(line)
        assert any(requirement.specifier.contains(v) for v in pins(requirement.name)), line
