"""Variants of notebooks: declared as text, refused by name, run beside the study, kept when current."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from fake_study import ROOT, FakeProject

from sgdm_utils.experiments import ablation, effects
from sgdm_utils.experiments.ablation import AblationError, Variant

ALIGN, PRETRAIN = "03_contrastive_alignment", "02_encoder_pretraining"

# What a study leaves behind, written without any kernel: stages up to the encoder.
UPSTREAM = """
from sgdm_utils.workflow import artifacts, paths
def write(who, stage, seed, inputs):
    notes = {"subjects": ["sub-01", "sub-02"], "raw_root": "set"}
    with artifacts.write_artifact("demo", who, stage, seed, inputs=inputs, notes=notes,
            notebook=paths.STAGES[stage].notebook, parameters={"study": "demo", "rate": 0.5}) as out:
        (out / "numbers.txt").write_text(stage)
    return artifacts.read_artifact("demo", who, stage, seed)
data = write("joint", "data", None, [])
subjects = [write(s, "preprocessing", None, [data]) for s in ("sub-01", "sub-02")]
pretrained = write("joint", "encoder_pretrained", 0, [data, *subjects])
clip = write("joint", "clip", 0, [data])
encoder = write("joint", "encoder", 0, [data, clip, pretrained, *subjects])
structure = write("joint", "structure", 0, [data, pretrained, *subjects])
forward = write("joint", "forward", 0, [data, clip, encoder, *subjects])
generator = write("joint", "generator", 0, [data, clip])
write("joint", "pipeline", 0, [data, clip, encoder, structure, forward, generator])
"""

RUN = """
import json, sys
from sgdm_utils.experiments import ablation
from sgdm_utils.experiments.ablation import Variant
try:
    result = ablation.run_variant("demo", 0, Variant.parse(sys.argv[1]), json.loads(sys.argv[2]))
except ablation.AblationError as error:
    sys.exit(f"AblationError: {error}")
stage = sys.argv[3]
print(json.dumps([result.computed, result.artifact(stage).parameters, str(result.root)]))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A miniature project whose study is finished up to the pipeline."""
    project = FakeProject.create(tmp_path_factory.mktemp("ablations") / "project")
    shutil.copytree(ROOT / "sgdm_utils/experiments", project.root / "sgdm_utils/experiments")
    shutil.copytree(ROOT / "sgdm_utils/metrics", project.root / "sgdm_utils/metrics")
    (project.root / "data" / "raw" / "set").mkdir(parents=True)
    done = project.python("-c", UPSTREAM)
    assert done.returncode == 0, done.stderr
    return project


def run_variant(project, text, base=None, stage="encoder"):
    """Return what was computed, the parameters of the result, and the scratch root."""
    done = project.python("-c", RUN, text, json.dumps(base or {}), stage)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_variant_runs_beside_the_study_and_is_kept_until_something_changes(project):
    own = project.artifact("joint", "encoder", 0)
    before = {p.name: p.read_bytes() for p in own.iterdir()}
    text = f"no rate | {ALIGN} rate=0.0"

    computed, values, root = run_variant(project, text)
    assert (computed, values["rate"]) == ([ALIGN], 0.0)
    assert {p.name: p.read_bytes() for p in own.iterdir()} == before, "the study's own was touched"
    derived = f"{root}/data/derived/demo"
    assert os.path.samefile(f"{derived}/joint/data", project.artifact("joint", "data"))
    assert os.path.islink(f"{derived}/sub-02/preprocessing")
    assert os.path.islink(f"{root}/data/raw/set")
    assert not os.path.islink(f"{derived}/joint/seed-0/encoder")
    assert not os.path.exists(f"{derived}/joint/seed-0/structure"), "a later result was shared"
    assert list((project.root / "reports").rglob("*.ipynb")) == []

    assert run_variant(project, text)[0] == [], "the same again is not computed again"
    computed, values, _ = run_variant(project, text, {ALIGN: {"rate": 7.0}})
    assert (computed, values["rate"]) == ([], 0.0), "the variant's own value wins"


def test_an_interrupted_variant_goes_on_with_what_is_missing(project):
    text = f"no pretraining | {PRETRAIN} rate=0.25; {ALIGN}"
    base = {ALIGN: {"rate": 3.0}}
    computed, values, root = run_variant(project, text, base)
    assert (computed, values["rate"]) == ([PRETRAIN, ALIGN], 3.0)

    seed_folder = f"{root}/data/derived/demo/joint/seed-0"
    shutil.rmtree(f"{seed_folder}/encoder")
    os.makedirs(f"{seed_folder}/.encoder.0123456789ab.part")  # of a writer that was killed
    assert run_variant(project, text, base)[0] == [ALIGN]
    assert not os.path.exists(f"{seed_folder}/.encoder.0123456789ab.part")


def test_a_failing_notebook_is_told_with_its_last_lines_and_its_copy(project):
    book = project.root / "notebooks" / f"{ALIGN}.ipynb"
    whole = book.read_text()
    try:
        project.edit_notebook(
            ALIGN, "values =", "assert rate < 1, 'the rate is too high'\nvalues ="
        )
        done = project.python("-c", RUN, f"with rates | {ALIGN} rate=9.0", "{}", "encoder")
    finally:
        book.write_text(whole)
    assert done.returncode == 1
    assert "variant 'with rates'" in done.stderr and "{'rate': 9.0} failed" in done.stderr
    assert "AssertionError: the rate is too high" in done.stderr
    copy = done.stderr.rpartition("Executed copy: ")[2].strip()
    assert "the rate is too high" in (project.root / copy).read_text()


def test_a_result_between_two_changes_is_asked_for(project):
    text = f"no pretraining at all | {PRETRAIN} rate=0.25; 05b_pipeline"
    done = project.python("-c", RUN, text, "{}", "pipeline")
    assert "add '03_contrastive_alignment' as a step between them" in done.stderr
    assert done.returncode == 1


def test_a_study_that_is_not_there_is_named_with_the_command_that_makes_it(tmp_study):
    with pytest.raises(Exception, match="sgdm_utils run 00_data --study smoke"):
        ablation.run_variant("smoke", 0, Variant.parse(f"no x | {ALIGN} mse_weight=0.0"))


def test_a_declaration_is_read():
    text = f"no pretraining | {PRETRAIN} pretrain_epochs=0 ; {ALIGN} mse_weight=1e-3 clip_model='x'"
    variant = Variant.parse(text)
    assert variant.name == "no pretraining" and variant.folder == "no-pretraining"
    steps = ((PRETRAIN, {"pretrain_epochs": 0}), (ALIGN, {"mse_weight": 1e-3, "clip_model": "x"}))
    assert variant.steps == steps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no name", "declares no variant: write 'name | notebook"),
        (f"a | {ALIGN} mse_weight", "'mse_weight' in 'mse_weight' is not one 'parameter=value'"),
        (f"a | {ALIGN} mse_weight=1 mse_weight=2", "'mse_weight=2' .* of its own"),
        (f"a | {ALIGN} clip_model=tiny", "'tiny' .* is no literal: .* text in quotes"),
    ],
)
def test_a_declaration_without_the_form_is_refused(text, message):
    with pytest.raises(AblationError, match=message):
        Variant.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"a | {ALIGN} mse_wieght=0.0", "no parameter 'mse_wieght'; did you mean mse_weight"),
        (f"a | {ALIGN} align_epochs=2.5", "2.5 is of type float where int is declared"),
        (f"a | {ALIGN} seed=1", "seed of 03_contrastive_alignment is set by the study"),
        ("a | 00_data snr=0.0", "00_data is none of 02_encoder_pretraining, 02b_clip, 03_"),
        (f"a | {ALIGN}; {PRETRAIN}", "each once, in the order of the chain"),
        (f"a | {ALIGN}; {ALIGN}", "each once, in the order of the chain"),
        (f"!? | {ALIGN}", "needs a name with letters or digits"),
    ],
)
def test_a_variant_that_does_not_fit_is_refused_before_anything_runs(text, message, tmp_study):
    with pytest.raises(AblationError, match=message):
        ablation.run_variant("smoke", 0, Variant.parse(text))
    assert not (tmp_study / "data").exists()


def test_unknown_notebooks_and_seeds_are_refused(tmp_study):
    with pytest.raises(ValueError, match="no notebook '03_alignment'"):
        ablation.plan("smoke", 0, Variant("a", (("03_alignment", {}),)))
    with pytest.raises(ValueError, match="seed 8 is not part of study 'smoke'"):
        ablation.plan("smoke", 8, Variant("a", ((ALIGN, {}),)))
    with pytest.raises(AblationError, match="what all variants share.*no parameter 'epochs'"):
        ablation.plan("smoke", 0, Variant("a", ((ALIGN, {}),)), {ALIGN: {"epochs": 1}})


def test_a_plan_holds_the_studys_values_except_for_what_is_changed():
    study = ablation.study_values("smoke", 0, ALIGN)
    (planned,) = ablation.plan(
        "smoke", 0, Variant("a", ((ALIGN, {"mse_weight": 0.0}),)), {ALIGN: {"align_epochs": 2}}
    )
    assert planned.overrides == {"align_epochs": 2, "mse_weight": 0.0}
    assert planned.values == study | planned.overrides
    assert study["align_epochs"] != 2 and study["study"] == "smoke"


def test_limits_shorten_and_never_lengthen():
    own = ablation.study_values("smoke", 0, ALIGN)["align_epochs"]
    for limit, wanted in ((own - 1, own - 1), (own + 1, own)):
        assert ablation.capped("smoke", 0, {ALIGN: {"align_epochs": limit}}) == {
            ALIGN: {"align_epochs": wanted}
        }
    with pytest.raises(
        AblationError, match="no parameter 'align_epoch'; did you mean align_epochs"
    ):
        ablation.capped("smoke", 0, {ALIGN: {"align_epoch": 1}})


def test_labels_say_what_is_taken_out_or_put_in():
    assert ablation.component("no squared error") == ("squared error", 1)
    assert ablation.component("with text targets") == ("text targets", -1)
    for label in ("squared error", "no", "without it"):
        with pytest.raises(AblationError, match="begin it with 'no'"):
            ablation.component(label)


def test_where_links_are_refused_a_copy_is_made_and_renewed(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no links here")

    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    source.mkdir()
    (source / "a.txt").write_text("old")
    ablation.link(source, target)
    assert target.is_symlink() and (target / "a.txt").read_text() == "old"
    target.unlink()
    monkeypatch.setattr(os, "symlink", refuse)
    ablation.link(source, target)
    assert not target.is_symlink() and (target / "a.txt").read_text() == "old"
    (target / "a.txt").chmod(0o400)
    ablation.link(source, target)
    assert (target / "a.txt").stat().st_mode & 0o777 == 0o400, "a copy that holds is left alone"
    (source / "a.txt").write_text("newer")
    ablation.link(source, target)
    assert (target / "a.txt").read_text() == "newer"
    assert [p.name for p in (tmp_path / "deep").iterdir() if p.suffix == ".part"] == []


def test_an_effect_is_the_mean_paired_difference_and_its_test_counts_pictures():
    items = np.tile(np.arange(6), 2)  # two people, six pictures
    people = np.repeat(["a", "b"], 6)
    absent = np.random.default_rng(0).normal(size=12)
    present = absent + np.repeat([1.0, 3.0], 6)
    found = effects.paired_effect(present, absent, items, people, np.random.default_rng(1), 500)
    assert found["difference"] == pytest.approx(2.0)
    assert found["n"] == 6
    # Every picture's difference is 2: of 64 sign patterns, two are as extreme as the observed one.
    assert found["p_value"] == pytest.approx(2 / 64)
    # Resampled people give means of 1, 2 or 3, whatever the pictures.
    assert (found["ci_low"], found["ci_high"]) == pytest.approx((1.0, 3.0))
    with pytest.raises(ValueError, match="12 scores with, 11 without, 12 items"):
        effects.paired_effect(present, absent[1:], items, people, np.random.default_rng(1))


def family(*rows):
    columns = ["component", "measure", "difference", "ci_low", "ci_high", "p_value"]
    return pd.DataFrame(rows, columns=columns)


def test_a_finding_needs_a_corrected_test_an_interval_without_zero_and_more_than_a_placebo():
    tested = family(
        ("clear", "m", 0.5, 0.3, 0.7, 0.001),
        ("harmful", "m", -0.5, -0.7, -0.3, 0.001),
        ("crosses zero", "m", 0.5, -0.1, 1.1, 0.001),
        ("like a placebo", "m", 0.1, 0.05, 0.15, 0.001),
        ("only uncorrected", "m", 0.5, 0.3, 0.7, 0.04),
        ("nothing", "m", 0.5, 0.3, 0.7, 0.9),
    )
    placebos = family(("p1", "m", -0.12, -1, 1, 1.0), ("p2", "m", 0.02, -1, 1, 1.0))
    judged = effects.judge(tested, placebos)
    assert judged["finding"].tolist() == ["helps", "hurts", "", "", "", ""]
    assert judged["noise"].tolist() == [0.12] * 6
    # Holm by hand: four times 0.001 * 6, then 0.04 * 2, then 0.9
    assert judged["p_holm"].to_numpy() == pytest.approx([0.006] * 4 + [0.08, 0.9])
    with pytest.raises(ValueError, match="no placebo was measured on m"):
        effects.judge(tested, placebos.assign(measure="other"))


@pytest.mark.parametrize(
    ("findings", "word"),
    [
        (["", ""], "not shown to matter"),
        (["helps", ""], "matters"),
        (["", "hurts"], "hurts"),
        (["helps", "hurts"], "helps and hurts"),
    ],
)
def test_the_verdict_follows_from_the_findings(findings, word):
    assert effects.verdict(findings) == word
