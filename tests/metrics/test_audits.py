"""Each audit catches the fault that is planted and lets honest results through."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import skew

from sgdm_utils.metrics import audits, memorisation, tables
from sgdm_utils.metrics.audits import AuditError

N, N_TRAIN, SIDE = 24, 240, 64


def drawn(rng, n):
    """Pictures of a coloured gradient with three discs, uint8 (n, 64, 64, 3)."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    out = np.empty((n, SIDE, SIDE, 3))
    for picture in out:
        a, b = rng.random((2, 3))
        picture[:] = a + (b - a) * (x if rng.random() < 0.5 else y)[..., None]
        for _ in range(3):
            cy, cx, r = rng.random(3) * [1, 1, 0.25] + [0, 0, 0.08]
            picture[(y - cy) ** 2 + (x - cx) ** 2 < r**2] = rng.random(3)
    return np.round(out * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    return {"train": drawn(rng, N_TRAIN), "seen": drawn(rng, N)}


def blurred(pictures, sigma):
    return gaussian_filter(pictures.astype(float), (0, sigma, sigma, 0)).round().astype(np.uint8)


def nearness(world, made, **options):
    ids = [f"img-{i:02d}" for i in range(len(made))]
    train_ids = [f"train-{i:03d}" for i in range(N_TRAIN)]
    rng = np.random.default_rng(1)
    return memorisation.pixel_nearness(
        made, world["seen"], world["train"], ids, train_ids, rng, n_reference=60, **options
    )


def moved(pictures, dy, dx):
    """Shifted content; what enters at the border repeats the border."""
    padded = np.pad(pictures, ((0, 0), (8, 8), (8, 8), (0, 0)), mode="edge")
    return padded[:, 8 - dy : 8 - dy + SIDE, 8 - dx : 8 - dx + SIDE]


COPIES = {
    "exact": lambda p, rng: p,
    "noisy": lambda p, rng: np.clip(p + rng.normal(0, 20, p.shape), 0, 255).astype(np.uint8),
    "shifted by 2": lambda p, rng: moved(p, 2, -2),
    "shifted by 1": lambda p, rng: moved(p, 1, 0),
    "mirrored": lambda p, rng: p[:, :, ::-1],
    "mirrored, noisy": lambda p, rng: np.clip(
        p[:, :, ::-1] + rng.normal(0, 10, p.shape), 0, 255
    ).astype(np.uint8),
    "slightly smoothed": lambda p, rng: blurred(p, 1.0),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_caught_and_named_with_their_original(world, kind):
    rng = np.random.default_rng(2)
    original = rng.choice(N_TRAIN, N, replace=False)
    made = COPIES[kind](world["train"][original], rng)
    near = nearness(world, made)
    assert near.reconstructions["nearest"].tolist() == [f"train-{i:03d}" for i in original]
    finding = memorisation.audit_memorisation(near, strict=False)
    assert finding.verdict == audits.VIOLATED and finding.value > 0.9
    worst = near.reconstructions["ratio"].argmin()
    with pytest.raises(AuditError, match=f"img-{worst:02d} ~ train-{original[worst]:03d}"):
        memorisation.audit_memorisation(near)


def test_a_single_exact_copy_among_honest_pictures_is_caught(world):
    made = drawn(np.random.default_rng(3), N)
    assert memorisation.audit_memorisation(nearness(world, made)).verdict == audits.CLEAN
    made[5] = moved(world["train"][77:78], 2, 0)[0]
    with pytest.raises(AuditError, match="img-05 ~ train-077"):
        memorisation.audit_memorisation(nearness(world, made))


def test_without_shifts_a_moved_copy_of_fine_texture_is_missed(world):
    """The reason for the shifts: the difference of moved pixels is as large as of other pictures."""
    rng = np.random.default_rng(4)
    coarse = rng.integers(0, 256, (N_TRAIN, 32, 32, 3)).astype(np.uint8)
    train = coarse.repeat(2, axis=1).repeat(2, axis=2)
    seen = rng.integers(0, 256, (N, 32, 32, 3)).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
    textured = {"train": train, "seen": seen}
    made = moved(train[:N], 2, 2)
    blind = memorisation.audit_memorisation(nearness(textured, made, shift=0), strict=False)
    assert blind.verdict == audits.CLEAN
    found = memorisation.audit_memorisation(nearness(textured, made), strict=False)
    assert found.verdict == audits.VIOLATED and found.value == 1


HONEST = {
    "other pictures": lambda w: drawn(np.random.default_rng(5), N),
    "blurred targets": lambda w: blurred(w["seen"], 4),
    "very blurred targets": lambda w: blurred(w["seen"], 12),
    "targets drawn to the mean": lambda w: (
        0.2 * w["seen"] + 0.8 * w["train"].mean(0)
    ).astype(np.uint8),
    "mean picture": lambda w: np.repeat(w["train"].mean(0)[None], N, 0).astype(np.uint8),
    "perfect": lambda w: w["seen"],
}  # fmt: skip


@pytest.mark.parametrize("kind", HONEST)
def test_smooth_honest_pictures_are_no_copies_however_near_they_are(world, kind):
    made = HONEST[kind](world)
    near = nearness(world, made)
    finding = memorisation.audit_memorisation(near)
    assert finding.verdict == audits.CLEAN
    if "mean" in kind or "very" in kind:  # the trap: nearer to training than any real picture is
        by_distance = nearness(world, world["seen"]).reconstructions["distance"]
        assert near.reconstructions["distance"].median() < by_distance.median()


def test_distances_and_ratio_are_those_of_a_literal_search(world):
    made = drawn(np.random.default_rng(6), 3)
    near = nearness(world, made)
    shrink = lambda p: p.reshape(32, 2, 32, 2, 3).mean((1, 3)) / 255  # noqa: E731
    train = [shrink(p)[1:31, 1:31] for p in world["train"]]
    for i, picture in enumerate(made):
        best = np.full(N_TRAIN, np.inf)
        small = shrink(picture)
        crops = [small[y : y + 30, x : x + 30] for y in range(3) for x in range(3)]
        for crop in [*crops, small[1:31, 1:31][:, ::-1]]:
            best = np.minimum(best, [np.sqrt(((crop - t) ** 2).mean()) for t in train])
        row, order = near.reconstructions.iloc[i], np.sort(best)
        assert row["distance"] == pytest.approx(order[0], abs=1e-5)
        assert row["nearest"] == f"train-{best.argmin():03d}"
        assert row["ratio"] == pytest.approx(order[0] / order[1:51].mean(), abs=1e-4)


def test_duplicates_in_the_training_set_do_not_hide_copies(world):
    doubled = world | {"train": world["train"].copy()}
    doubled["train"][120:] = doubled["train"][:120]
    near = nearness(doubled, doubled["train"][:N])
    assert np.median(near.train[0]) < 0.01
    assert memorisation.audit_memorisation(near, strict=False).verdict == audits.VIOLATED
    assert memorisation.audit_memorisation(nearness(doubled, doubled["seen"])).verdict == "clean"


def test_copies_are_caught_in_a_feature_space_and_conditions_can_be_taken_apart(world):
    rng = np.random.default_rng(7)
    train, seen = rng.normal(size=(N_TRAIN, 32)), rng.normal(size=(N, 32))
    copies = train[:N] * 3 + rng.normal(0, 0.1, (N, 32))
    ids = [f"{c} {i}" for c in ("honest", "copy") for i in range(N)]
    near = memorisation.feature_nearness(
        np.concatenate([seen + rng.normal(0, 1, seen.shape), copies]), seen, train, ids,
        range(N_TRAIN), rng, "CLIP",
    )  # fmt: skip
    copied = np.array([name.startswith("copy") for name in ids])
    assert memorisation.audit_memorisation(near.of(~copied)).verdict == audits.CLEAN
    finding = memorisation.audit_memorisation(near.of(copied), strict=False)
    assert finding.verdict == audits.VIOLATED and finding.n == N and "CLIP" in finding.audit
    with pytest.raises(AuditError, match="copy 0|copy 1"):
        memorisation.audit_memorisation(near)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"made": np.zeros((2, 64, 64, 3))}, "reconstructions: float64"),
        ({"made": np.zeros((2, 16, 16, 3), np.uint8)}, "must be of one size"),
        ({"shift": 9}, "a shift of 9"),
        ({"ids": ["a"]}, "2 reconstructions with 1 ids"),
        ({"train": np.zeros((5, 64, 64, 3), np.uint8)}, "at least 8"),
        ({"train": np.zeros((40, 64, 64, 3), np.uint8)}, "training pictures are the same"),
    ],
)
def test_memorisation_refuses(world, change, message):
    given = {"made": world["seen"][:2], "train": world["train"], "ids": ["a", "b"], "shift": 1}
    given |= change
    with pytest.raises(ValueError, match=message):
        memorisation.pixel_nearness(
            given["made"], world["seen"], given["train"], given["ids"],
            range(len(given["train"])), np.random.default_rng(0), given["shift"],
        )  # fmt: skip


def test_features_that_have_no_direction_are_refused():
    rng = np.random.default_rng(0)
    good = rng.normal(size=(20, 4))
    for bad in (np.zeros((20, 4)), np.full((20, 4), np.nan)):
        with pytest.raises(ValueError, match="seen: expected finite features"):
            memorisation.feature_nearness(good, bad, good, range(20), range(20), rng, "CLIP")


# -- collapse


IDS = [f"img-{i:02d}" for i in range(40)]


def features(seed=0, n=40, d=20):
    return np.random.default_rng(seed).normal(size=(n, d))


def test_honest_variety_passes_both_audits_of_collapse():
    seen = features()
    noisy = 0.5 * seen + 0.5 * features(1)
    assert audits.audit_diversity(noisy, seen, IDS).verdict == audits.CLEAN
    assert audits.audit_diversity(seen, seen, IDS).value == pytest.approx(1)
    found = audits.audit_dimension(noisy, seen, IDS, np.random.default_rng(0))
    assert found.verdict == audits.CLEAN and found.reference <= audits.N_MODES - 1


def test_all_the_same_picture_is_caught():
    seen = features()
    same = np.repeat(seen[:1], 40, 0) + 1e-3 * features(1)
    with pytest.raises(AuditError, match="collapse: .* limit 0.1 .* img-00, img-01.* 32 more"):
        audits.audit_diversity(same, seen, IDS)
    exactly = audits.audit_dimension(
        np.repeat(seen[:1], 40, 0), seen, IDS, np.random.default_rng(0), strict=False
    )
    assert exactly.value == 0 and exactly.verdict == audits.VIOLATED


def test_two_alternating_pictures_are_caught_by_their_dimension_not_by_their_distance():
    seen = features()
    two = seen[np.arange(40) % 2]
    assert audits.audit_diversity(two, seen, IDS).verdict == audits.CLEAN
    with pytest.raises(AuditError, match="output dimension: .* is 1, .*img-00"):
        audits.audit_dimension(two, seen, IDS, np.random.default_rng(0))
    many = seen[np.arange(40) % 12]
    found = audits.audit_dimension(many, seen, IDS, np.random.default_rng(0))
    assert found.verdict == audits.CLEAN


def test_brightness_does_not_hide_the_other_ways_in_which_pictures_vary():
    """Unscaled, the seen pictures themselves have a dimension near 1, as if they had collapsed."""
    seen = features() + 30 * features(3, 40, 1)
    assert audits.participation_ratio(seen) < 1.2
    with pytest.raises(ValueError, match="vary along 1 axes only"):
        audits.audit_dimension(seen, seen, IDS, np.random.default_rng(0))
    milder = features() + 3 * features(3, 40, 1)
    found = audits.audit_dimension(
        milder + 0.5 * features(4), milder, IDS, np.random.default_rng(0)
    )
    assert audits.participation_ratio(milder) < 2 < 3 < found.value


def test_participation_ratio_is_that_of_the_eigenvalues():
    x = features(2, 50, 6) * np.array([3, 2, 1, 1, 0.5, 0])
    eigenvalues = np.linalg.eigvalsh(np.cov(x.T))
    expected = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    assert audits.participation_ratio(x) == pytest.approx(expected)
    assert audits.participation_ratio(x + 100) == pytest.approx(expected, rel=1e-6)
    assert audits.participation_ratio(np.ones((9, 4))) == 0


@pytest.mark.parametrize(
    ("made", "ids", "message"),
    [
        (features(0, 39), IDS, "expected the same"),
        (features(), IDS[:5], "5 ids"),
        (np.where(features() > 2.5, np.nan, features()), IDS, "NaN or infinite values in img"),
    ],
)
def test_collapse_refuses(made, ids, message):
    with pytest.raises(ValueError, match=message):
        audits.audit_diversity(made, features(), ids)


# -- hubness


def test_random_and_right_answers_have_no_hubs_and_the_reference_is_calibrated():
    rng = np.random.default_rng(0)
    verdicts = []
    for k in (1, 5):
        for _ in range(25):
            found = audits.audit_hubness(rng.random((40, 40)), IDS, rng, k, n_draws=300)
            verdicts.append(found.verdict)
    assert verdicts.count(audits.CLEAN) >= 47 and audits.VIOLATED not in verdicts
    right = audits.audit_hubness(np.eye(40), IDS, rng, n_draws=200)
    assert right.value == 0 and right.verdict == audits.CLEAN and right.items == ()


@pytest.mark.parametrize("k", [1, 5])
def test_a_planted_hub_is_caught_and_named(k):
    rng = np.random.default_rng(1)
    similarity = rng.random((40, 40))
    similarity[:24, 17] = 2.0
    found = audits.audit_hubness(similarity, IDS, rng, k, n_draws=300, strict=False)
    counts = np.bincount(np.argsort(-similarity, 1)[:, :k].ravel(), minlength=40)
    assert found.value == pytest.approx(skew(counts)) and found.value > found.reference
    assert found.verdict == audits.VIOLATED and found.items[0] == f"img-17 ({counts[17]} of 40)"
    with pytest.raises(AuditError, match="hubness.*img-17"):
        audits.audit_hubness(similarity, IDS, rng, k, n_draws=300)


def test_a_small_hub_is_reported_but_does_not_fail():
    rng = np.random.default_rng(2)
    similarity = rng.random((200, 200)) + 2 * np.eye(200)
    similarity[:30, 3] = 4.0
    found = audits.audit_hubness(similarity, [str(i) for i in range(200)], rng, n_draws=300)
    assert found.verdict.startswith("hubs") and found.items == ("3 (30 of 200)",)


def test_hubness_refuses():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="39 ids for 40"):
        audits.audit_hubness(np.eye(40), IDS[:39], rng)
    with pytest.raises(ValueError, match="finite matrix"):
        audits.audit_hubness(np.full((40, 40), np.nan), IDS, rng)


# -- transduction


def rows(label=False):
    cells = {"study": "demo", "subject": "all", "seed": 0, "metric": "ssim", "value": 0.5, "n": 9}
    eeg = [tables.make_row(model=m, condition="eeg", transductive=label, **cells) for m in "ab"]
    return [*eeg, tables.make_row(model="a", condition="oracle", **cells)]


def test_true_labels_pass():
    assert audits.audit_transduction(rows(), False).n == 3
    assert audits.audit_transduction(rows(True), True).verdict == audits.CLEAN
    mixed = rows()
    mixed[1]["transductive"] = True
    assert audits.audit_transduction(mixed, {"a": False, "b": True}).verdict == audits.CLEAN


@pytest.mark.parametrize("upstream", [True, {"a": True, "b": False}])
def test_a_planted_lie_is_caught(upstream):
    with pytest.raises(AuditError, match="all / a / eeg / ssim says False, upstream True"):
        audits.audit_transduction(rows(), upstream)


@pytest.mark.parametrize("label", [None, np.nan, "False", ""])
def test_a_missing_label_is_caught(label):
    table = pd.DataFrame(rows()).astype({"transductive": object})
    table.loc[1, "transductive"] = label
    with pytest.raises(AuditError, match="all / b / eeg / ssim says"):
        audits.audit_transduction(table, False)
    with pytest.raises(AuditError, match="without .'transductive'"):
        audits.audit_transduction(table.drop(columns="transductive"), False)


def test_a_model_that_nobody_vouches_for_is_refused():
    with pytest.raises(AuditError, match="whether b is transductive"):
        audits.audit_transduction(rows(), {"a": False})


# -- all of them together


def test_all_violations_come_in_one_message_after_the_table():
    seen = features()
    same = np.repeat(seen[:1], 40, 0)
    findings = [
        audits.audit_diversity(same, seen, IDS, strict=False),
        audits.audit_transduction(rows(), True, strict=False),
        audits.audit_diversity(seen, seen, IDS, strict=False),
    ]
    table = audits.as_table(findings)
    assert table["verdict"].tolist() == ["VIOLATED", "VIOLATED", "clean"]
    assert table["items"].iloc[0].endswith("and 32 more")
    with pytest.raises(AuditError, match=r"2 of 3 audits.*\n.*collapse.*\n.*transduction"):
        audits.enforce(findings)
    audits.enforce(findings[2:])
