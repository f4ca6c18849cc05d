"""Real people in small files: what is refused, what is reproduced, and decoders against explicit ones.

The files lie beside the checkout and are no part of it; without them, the tests that need them skip.
"""

from __future__ import annotations

import shutil

import nbformat
import numpy as np
import pytest
import scipy.io
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from sgdm_utils import metrics
from sgdm_utils.experiments import real_brains
from sgdm_utils.experiments.real_brains import RealBrainError
from sgdm_utils.workflow import config, paths, run
from sgdm_utils.workflow.downloads.fetch import fetch
from sgdm_utils.workflow.downloads.transfers import DownloadError

SHARED = paths.project_root().parent / "shared" / "data"
ENTRIES = {
    "brains_92_fmri": "brains_92", "brains_92_pictures": "brains_92", "atm_sub08": "atm_sub08",
    "muse_n170": "muse_n170",
}  # fmt: skip
needs_files = pytest.mark.skipif(
    not all((SHARED / folder).is_dir() for folder in ENTRIES.values()),
    reason="the small recordings of real brains are not beside the checkout (shared/data)",
)


def rdms_of(n_people=3, n=12, seed=0):
    """Squared distances of points that all people share, with noise of each."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n, 4)) + 0.3 * rng.normal(size=(n_people, n, 4))
    return ((points[:, :, None] - points[:, None]) ** 2).sum(-1)


# ------------------------------------------------------------------ what is refused


def one_triangle(rdms):
    rdms[1] = np.triu(rdms[1])


def other_rows(rdms):
    rdms[1] = rdms[1][::-1]


def a_number_missing(rdms):
    rdms[1, 3, 4] = rdms[1, 4, 3] = np.nan


def similarities(rdms):
    rdms[1] = 1 - rdms[1] / rdms[1].max()


def all_alike(rdms):
    rdms[1] = 1 - np.eye(rdms.shape[1])


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (one_triangle, "person 2: not symmetric.* Was only one triangle filled.*Mirror the one"),
        (other_rows, "person 2: not symmetric, .*rows in another order.*reorder the other"),
        (a_number_missing, "person 2: 2 dissimilarities are NaN.* pictures 4 and 5. Leave the person"),
        (similarities, "person 2: the diagonal is not 0, 1 at picture 1. If these are .* give 1 - r"),
        (all_alike, "person 2: all dissimilarities are alike.*Leave the person out"),
    ],
)  # fmt: skip
def test_matrices_that_are_no_dissimilarities_are_refused(break_it, message):
    rdms = rdms_of()
    assert real_brains.check_rdms(rdms, "rdms.npz", 12).shape == (3, 12, 12)
    break_it(rdms)
    with pytest.raises(RealBrainError, match=f"rdms.npz, {message}"):
        real_brains.check_rdms(rdms, "rdms.npz")


def test_other_shapes_of_matrices_are_refused():
    with pytest.raises(RealBrainError, match="12 pictures, expected 92. Take rows and columns"):
        real_brains.check_rdms(rdms_of(), "x", 92)
    with pytest.raises(RealBrainError, match=r"shape \(3, 66\), .*squareform"):
        real_brains.check_rdms(real_brains.upper(rdms_of()), "x")


def test_another_order_of_the_pictures_is_noticed():
    rdms, rng = rdms_of(n=40), np.random.default_rng(1)
    models = {"form": rdms_of(1, 40)[0], "category": rdms_of(1, 40, seed=5)[0]}
    value = real_brains.check_order(rdms.mean(0), models, "mine.npz", rng, 200)
    expected = spearmanr(real_brains.upper(rdms.mean(0)), real_brains.upper(models["form"]))[0]
    assert value == pytest.approx(expected) and value > 0.5
    order = rng.permutation(40)
    with pytest.raises(
        RealBrainError, match="mine.npz: agrees with form and category no better .*sorted by"
    ):
        real_brains.check_order(rdms.mean(0)[np.ix_(order, order)], models, "mine.npz", rng, 200)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v[:, :5], "embeddings of width 5, expected 8. They are of another CLIP"),
        (lambda v: v[:4], "4 embeddings, expected 6, one for each picture"),
        (lambda v: v.index_fill(0, torch.tensor([2]), torch.nan), r"embeddings \[2\] .* NaN"),
        (lambda v: v.index_fill(0, torch.tensor([1, 3]), 0), r"embeddings \[1, 3\] .* all zero"),
        (lambda v: v[0], r"expected a table \(n_items, width\)"),
        (lambda v: {"others": v}, "holds no 'img'; it holds others"),
    ],
)
def test_embeddings_that_cannot_be_used_are_refused(tmp_path, change, message):
    values, path = torch.randn(6, 8), tmp_path / "e.pt"
    torch.save({"img": values}, path)
    np.testing.assert_array_equal(real_brains.read_embeddings(path, "img", 6, 8), values.numpy())
    changed = change(values)
    torch.save(changed if isinstance(changed, dict) else {"img": changed}, path)
    with pytest.raises(RealBrainError, match=f"e.pt.*{message}"):
        real_brains.read_embeddings(path, "img", 6, 8)


def test_files_of_another_kind_are_refused(tmp_path):
    scipy.io.savemat(tmp_path / "x.mat", {"y": 1})
    np.savez(tmp_path / "x.npz", y=1)
    (tmp_path / "x.pt").write_bytes(b"no archive")
    for read, name in (
        (real_brains.read_rdms, "x.mat"),
        (real_brains.read_rdms, "x.npz"),
        (real_brains.read_pictures, "x.mat"),
        (real_brains.read_embeddings, "x.pt"),
    ):
        with pytest.raises(RealBrainError, match=f"{name} .*fetch the published file"):
            read(tmp_path / name)


def test_pictures_are_read_as_silhouettes_and_an_empty_one_is_named(tmp_path):
    picture = np.full((2, 9, 9, 3), 128, np.uint8)
    picture[:, 2:6, 3:7] = 7
    picture[:, 3, 4] = 128  # a hole
    kind = [(name, "O") for name in ("human", "face", "animal", "natural", "category", "image")]
    items = np.array([(1, 0, 1, 1, "human bodypart", p) for p in picture], dtype=kind)
    scipy.io.savemat(tmp_path / "p.mat", {"stimuli_92objs": items[None]})
    read = real_brains.read_pictures(tmp_path / "p.mat")
    assert read.silhouettes.sum((1, 2)).tolist() == [16, 16]
    assert read.labels.iloc[1].tolist() == [1, 0, 1, 1, "human bodypart"]
    items["image"][1] = np.full((9, 9, 3), 128, np.uint8)
    scipy.io.savemat(tmp_path / "p.mat", {"stimuli_92objs": items[None]})
    with pytest.raises(RealBrainError, match=r"pictures \[2\] are all ground or all figure"):
        real_brains.read_pictures(tmp_path / "p.mat")


# ------------------------------------------------------------------ geometry


def explicit_ridge(points, targets, penalty):
    """Ridge regression on points, (mean, coefficients), penalty in mean eigenvalues."""
    mean, centre = points.mean(0), targets.mean(0)
    k = (points - mean) @ (points - mean).T
    solved = np.linalg.solve(k + penalty * np.eye(len(k)), targets - centre)
    return lambda x: centre + (x - mean) @ (points - mean).T @ solved


def test_the_decoder_is_ridge_regression_with_a_penalty_from_the_other_pictures():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(16, 20))
    targets = points[:, :5] @ rng.normal(size=(5, 3)) + 0.5 * rng.normal(size=(16, 3))
    rdm = ((points[:, None] - points) ** 2).sum(-1)
    penalties = (0.03, 0.3, 3.0)
    predicted, chosen, _ = real_brains.GeometryDecoder(rdm, penalties).predict(targets)
    for i in range(16):
        x, y = np.delete(points, i, 0), np.delete(targets, i, 0)
        unit = np.trace((x - x.mean(0)) @ (x - x.mean(0)).T) / len(x)
        errors = []
        for penalty in penalties:
            left = [
                explicit_ridge(np.delete(x, j, 0), np.delete(y, j, 0), penalty * unit)(x[j]) - y[j]
                for j in range(len(x))
            ]
            errors.append(np.square(left).sum())
        assert chosen[i] == np.argmin(errors)
        expected = explicit_ridge(x, y, penalties[chosen[i]] * unit)(points[i])
        np.testing.assert_allclose(predicted[i], expected, rtol=1e-4, atol=1e-5)


def test_geometry_tells_of_pictures_what_it_holds_and_nothing_else():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(40, 3))
    decoder = real_brains.GeometryDecoder(((points[:, None] - points) ** 2).sum(-1))
    targets = points @ rng.normal(size=(3, 30))
    predicted, _, agreement = decoder.predict(targets)
    assert real_brains.two_way_among(targets, predicted).mean() > 0.95 and agreement.min() > 0.9
    null = [
        real_brains.two_way_among(targets[p], decoder.predict(targets[p])[0]).mean()
        for p in (rng.permutation(40) for _ in range(40))
    ]
    assert (
        0.42 < np.mean(null) < 0.53
    )  # slightly below one half: the mean of the others points away
    targets[3, 0] = np.nan
    with pytest.raises(ValueError, match="expected 40 finite rows"):
        decoder.predict(targets)


def test_identification_against_some_others():
    rng = np.random.default_rng(0)
    real, decoded = rng.normal(size=(2, 15, 6))
    expected = metrics.two_way_identification(real, decoded)
    np.testing.assert_allclose(real_brains.two_way_among(real, decoded), expected)
    near = real_brains.nearest_in(np.arange(15.0) ** 2, 2)
    assert np.flatnonzero(near[0]).tolist() == [1, 2] and (near.sum(1) == 2).all()
    r = np.corrcoef(decoded, real)[:15, 15:]
    score = [(r[i, near[i]] < r[i, i]).mean() for i in range(15)]
    np.testing.assert_allclose(real_brains.two_way_among(real, decoded, near), score)
    assert (
        real_brains.two_way_among(real, np.ones_like(real)).max() == 0
    )  # one answer to all: nothing
    with pytest.raises(ValueError, match="give 1 to 14"):
        real_brains.nearest_in(np.arange(15), 15)


def test_variance_is_split_into_what_models_explain_alone_and_in_common():
    rng = np.random.default_rng(0)
    a, b = rdms_of(1, 60, 1)[0], rdms_of(1, 60, 2)[0]
    rank = lambda m: (real_brains.upper(m).argsort().argsort() - 884.5) / 1770  # noqa: E731
    mixed = np.zeros((60, 60))
    mixed[np.triu_indices(60, 1)] = 2 * rank(a) + rank(b) + 0.2 * rng.normal(size=1770)
    mixed += mixed.T
    first, second, common = real_brains.partition_variance(mixed, a, b)
    assert first > 2.5 * second > 0.2 and abs(common) < 0.1
    first, second, common = real_brains.partition_variance(a, a, a + 1e-3 * rdms_of(1, 60, 3)[0])
    assert common > 0.95 and max(first, second) < 0.05


def test_the_noise_ceiling_is_one_without_noise_and_has_its_bounds_in_order():
    same = np.repeat(rdms_of(1), 4, axis=0)
    np.testing.assert_allclose(real_brains.noise_ceiling(same), 1)
    low, high = real_brains.noise_ceiling(rdms_of(6))
    assert (low < high).all() and low.min() > 0.3
    with pytest.raises(ValueError, match="one person has no noise ceiling"):
        real_brains.noise_ceiling(same[:1])


def test_silhouettes_get_a_margin_and_their_outline():
    masks, inside = real_brains.fit_into(np.ones((2, 30, 30), bool), 16, 0.5)
    assert masks.sum((1, 2)).tolist() == [64, 64] and masks[:, inside, inside].all()
    maps = real_brains.outlined(masks)
    assert maps.shape == (2, 2, 16, 16) and maps[:, 1].sum((1, 2)).tolist() == [28, 28]
    with pytest.raises(ValueError, match="scale is 0"):
        real_brains.fit_into(masks, 16, 0)


# ------------------------------------------------------------------ hubs; two classes


def test_csls_is_its_definition():
    similarity = np.random.default_rng(0).normal(size=(7, 9))
    scaled = metrics.csls(similarity, 3)
    row, column = np.sort(similarity[4])[-3:].mean(), np.sort(similarity[:, 5])[-3:].mean()
    assert scaled[4, 5] == pytest.approx(2 * similarity[4, 5] - row - column)
    for wrong, k, message in (
        (similarity, 8, "k = 8: 1 to 7"),
        (similarity[0], 1, "finite matrix"),
    ):
        with pytest.raises(ValueError, match=message):
            metrics.csls(wrong, k)


def test_area_under_the_curve_by_run_and_its_null():
    rng = np.random.default_rng(0)
    runs, face = np.repeat([1, 2, 3], 40), rng.random(120) < 0.5
    scores = np.round(face + rng.normal(size=120), 1)
    auc = real_brains.auc_over_runs(scores, face, runs)
    expected = [roc_auc_score(face[runs == r], scores[runs == r]) for r in (1, 2, 3)]
    np.testing.assert_allclose(auc, expected)
    p_value, null = real_brains.within_run_null(scores, face, runs, rng, 500)
    assert p_value == pytest.approx(1 / 501) and abs(null.mean() - 0.5) < 0.01
    p_value, _ = real_brains.within_run_null(rng.normal(size=120), face, runs, rng, 500)
    assert p_value > 0.01
    with pytest.raises(ValueError, match="run 2 shows one class only"):
        real_brains.auc_over_runs(scores, face | (runs == 2), runs)
    with pytest.raises(ValueError, match="no sample in part of"):
        real_brains.bin_means(np.zeros((2, 4, 10)), np.arange(10) / 100, 0, 0.2)


def test_a_study_of_another_recording_is_refused(tmp_study):
    with pytest.raises(
        RealBrainError, match="config/things_eeg2.yaml reads .* name a study of the Muse"
    ):
        real_brains.prepare_muse(tmp_study, "things_eeg2")


# ------------------------------------------------------------------ the notebook and the real files


def test_without_the_files_the_notebook_says_so_and_ends_well(tmp_study):
    study = config.load_study("smoke")
    done = run.execute(study, config.step(study, "experiments/23_real_brains", None, 0))
    cells = [c for c in nbformat.read(done, as_version=4).cells if c.cell_type == "code"]
    texts = [
        "".join(o.get("text", "") for o in c.outputs if o.get("name") == "stdout") for c in cells
    ]
    (which,) = [i for i, text in enumerate(texts) if "absent: brains_92_fmri" in text]
    for name in ENTRIES:
        assert f"python -m sgdm_utils fetch {name}" in texts[which]
    assert all("not run: files of real brains are absent" in text for text in texts[which + 1 :])
    assert not (paths.report_dir("smoke") / "tables" / "real_brains.csv").exists()


@pytest.fixture
def files(tmp_study):
    """The real files, as `fetch` leaves them."""
    assert real_brains.find_files(ENTRIES) == ({}, list(ENTRIES))
    for name, folder in ENTRIES.items():
        fetch(name, source=SHARED / folder, progress=False)
    found, absent = real_brains.find_files(ENTRIES)
    assert not absent and len(found) == 12
    return found


@needs_files
def test_real_embeddings_give_the_known_figures(files):
    predicted = real_brains.read_embeddings(
        files["ATM_S_eeg_features_sub-08_test.pt"], None, 200, 1024
    )
    for name, expected in (
        ("img_features", (0.36, 0.725, 0.970)),
        ("text_features", (0.12, 0.315, 0.846)),
    ):
        gallery = real_brains.read_embeddings(files["ViT-H-14_features_test.pt"], name, 200, 1024)
        similarity = metrics.cosine_similarity(predicted, gallery)
        ranks = metrics.retrieval_ranks(similarity)
        two_way = metrics.two_way_identification(gallery, predicted).mean()
        assert ((ranks <= 1).mean(), (ranks <= 5).mean(), two_way) == pytest.approx(
            expected, abs=6e-4
        )
        if name == "img_features":
            assert metrics.hubness_skewness(similarity, 10) == pytest.approx(1.63, abs=0.005)
            rescaled = metrics.retrieval_ranks(metrics.csls(similarity, 10))
            assert (rescaled <= 1).mean() == pytest.approx(0.49)


@needs_files
def test_real_geometry_tells_of_silhouettes_and_knows_the_order_of_pictures(files):
    pictures = real_brains.read_pictures(files["Kriegeskorte_Neuron2008_supplementalData.mat"])
    early = real_brains.read_rdms(files["net2brain_fmri_EVC_RDMs.npz"])
    temporal = real_brains.read_rdms(files["net2brain_fmri_IT_RDMs.npz"])
    assert real_brains.read_rdms(files["92_brainRDMs.mat"]).shape == (4, 92, 92)
    for rdms, known in ((early, 0.239), (temporal, 0.449)):  # each person with the others' mean
        values = [
            real_brains.rank_correlation(rdm, np.delete(rdms, p, 0).mean(0))
            for p, rdm in enumerate(rdms)
        ]
        assert np.mean(values) == pytest.approx(known, abs=0.001)
    masks, _ = real_brains.fit_into(pictures.silhouettes, 16, 1.0)
    pixels = masks.reshape(92, -1).astype(float)
    form, rng = 1 - np.corrcoef(pixels), np.random.default_rng(0)
    real_brains.check_order(early.mean(0), {"form": form}, "early", rng, 100)
    order = rng.permutation(92)
    with pytest.raises(RealBrainError, match="another order"):
        real_brains.check_order(
            early.mean(0)[np.ix_(order, order)], {"form": form}, "early", rng, 100
        )
    decoder = real_brains.GeometryDecoder(early.mean(0))
    assert real_brains.two_way_among(pixels, decoder.predict(pixels)[0]).mean() > 0.7
    null = real_brains.two_way_among(pixels[order], decoder.predict(pixels[order])[0]).mean()
    assert abs(null - 0.5) < 0.06


@needs_files
def test_a_file_that_was_altered_is_named(files):
    path = files["92_brainRDMs.mat"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        DownloadError, match="92_brainRDMs.mat is there but is not the published file"
    ):
        real_brains.find_files(ENTRIES)


@needs_files
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_notebook_on_the_small_study(smoke_study, tmp_path, monkeypatch):
    shutil.copytree(smoke_study.data, tmp_path / "data")
    monkeypatch.setenv("SGDM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SGDM_REPORTS", str(tmp_path / "reports"))
    for name, folder in ENTRIES.items():
        fetch(name, source=SHARED / folder, progress=False)
    study = smoke_study.config
    run.execute(study, config.step(study, "experiments/23_real_brains", None, study.seeds[0]))
    rows = metrics.read_table(paths.report_dir("smoke") / "tables" / "real_brains.csv")
    assert set(rows["model"]) >= {"atm_s", "structure_vae", "pixels", "generator", "lda", "forward"}
    assert rows.loc[rows["transductive"], "condition"].str.endswith("CSLS").all()
    two_way = rows[(rows["model"] == "structure_vae") & (rows["metric"] == "two_way")]
    two_way = two_way.set_index("condition")
    assert two_way.loc["early visual", "value"] > two_way.loc["class_only", "value"]
    assert abs(two_way.loc["early visual", "chance"] - 0.5) < 0.06  # the mean of the null
    auc = rows[rows["metric"] == "auc"].set_index(["model", "condition"])["value"]
    assert (
        auc["lda", "after the picture"] > 0.6 and abs(auc["lda", "before the picture"] - 0.5) < 0.05
    )
