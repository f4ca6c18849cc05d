"""README, citation and the demo's tables tell the same story."""

from __future__ import annotations

import io
import re
import subprocess
import tarfile

import pytest
import yaml

from sgdm_utils.figures import claims, readme_table
from sgdm_utils.metrics import tables
from sgdm_utils.workflow import paths

ROOT = paths.project_root()
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _git(*arguments: str) -> bytes:
    """What git says of this checkout; nothing where there is no git or no repository."""
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True).stdout
    except FileNotFoundError:
        return b""


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Tables that the README tells of: the committed ones, where `make demo` has replaced them."""
    monkeypatch.delenv("SGDM_REPORTS", raising=False)
    replaced = _git("status", "--porcelain", "--", "reports")
    if replaced and not _git("status", "--porcelain", "--", "README.md"):
        committed = _git("archive", "HEAD", "reports")
        with tarfile.open(fileobj=io.BytesIO(committed)) as archive:
            archive.extractall(tmp_path, filter="data")
        monkeypatch.setenv("SGDM_REPORTS", str(tmp_path / "reports"))
    return paths.report_dir("demo") / "tables"


def test_the_results_in_the_readme_are_those_of_the_tables(published):
    assert readme_table.fill(README, readme_table.results()) == README


def test_an_edited_number_would_be_noticed(monkeypatch):
    monkeypatch.delenv("SGDM_REPORTS", raising=False)
    inside = README.partition(readme_table.BEGIN)[2].partition(readme_table.END)[0]
    edited = README.replace(inside, re.sub(r"0\.(\d)", r"1.\1", inside))
    assert readme_table.fill(edited, readme_table.results()) != edited


def test_files_that_the_readme_links_to_exist():
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(targets) > 10
    assert [t for t in targets if not (ROOT / t).exists()] == []


def test_papermill_alone_gets_every_notebook_of_the_chain_in_order():
    listed = re.findall(r"^papermill -k python3 notebooks/(\w+)\.ipynb", README, re.MULTILINE)
    assert listed == [stage.notebook for stage in paths.STAGES.values()]


def test_every_claim_in_the_readme_has_its_table_and_is_computed(published):
    rows = claims.lines(published)
    assert len(rows) == len(claims.CLAIMS) and all(row in README for row in rows)
    assert claims.lines(ROOT / "tests") == []  # where nothing ran, nothing is claimed


def test_every_demo_number_has_its_controls():
    rows = tables.read_table(ROOT / "reports/demo/tables/reconstruction.csv")
    for _, part in rows.groupby("metric"):
        if part["value"].notna().any():
            assert {"eeg", "shuffled_eeg", "oracle"} <= set(part["condition"]) or set(
                part["condition"]
            ) == {"seen"}


def test_the_citation_names_the_authors_of_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper = citation["references"][0]
    names = [a["family-names"] for a in paper["authors"]]
    assert names == ["Lian", "Cang", "Hu", "He", "Shi"]
    assert paper["identifiers"][0]["value"] == "arXiv:2604.22649"
