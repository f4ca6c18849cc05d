"""The human test: a balanced blind design, answers that survive anything, scores that are right."""

from __future__ import annotations

import csv
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from scipy.stats import beta

from sgdm_utils.experiments.human_test import design as human_test_design
from sgdm_utils.experiments.human_test import design as human_test_widget
from sgdm_utils.experiments.human_test import scores as human_test_scores
from sgdm_utils.experiments.human_test.design import (
    RatingsError,
    RatingWidget,
    Session,
    make_design,
)

IDS = [f"picture{i:02}" for i in range(20)]
SUBJECTS = ("sub-01", "sub-02", "sub-03")
CONDITIONS = ("eeg", "shuffled_eeg", "no_structure")
SETS = [(c, s) for c in CONDITIONS for s in SUBJECTS] + [("oracle", "all"), ("mean_image", "all")]


def design(rater="anna", seed=0, **changes):
    cells = dict(study="tiny", image_ids=IDS, sets=SETS, conditions=CONDITIONS, n_items=10)
    return make_design(rater=rater, seed=seed, **cells | dict(n_catch=4) | changes)


def answer_all(session, is_right):
    """Answer what is left; `is_right(trial)` says whether this answer is to be the right one."""
    while not session.finished:
        trial = session.current
        left = (trial["left"] == "image") == bool(is_right(trial))
        session.answer("left" if left else "right", 1.0)
    return human_test_design.read_ratings(session.path, session.design)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """Leave flushing out: it takes most of the time, and only a power cut would tell."""
    monkeypatch.setattr("sgdm_utils.workflow.atomic._fsync", lambda path: None)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(5)
    return {i: rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) for i in IDS}


@pytest.fixture(scope="module")
def made(pictures):
    """EEG and oracle give the seen picture back, everything else the next one."""
    after = dict(zip(IDS, [*IDS[1:], IDS[0]], strict=True))
    true = {"eeg", "no_structure", "oracle"}
    return {
        (c, s): {i: pictures[i if c in true else after[i]] for i in IDS} for c, s in SETS
    }  # fmt: skip


# --- the design


def test_every_condition_is_shown_equally_often_with_the_same_pictures_and_each_once():
    trials = design()
    shown = {c: set(part["image_id"]) for c, part in trials.groupby("condition")}
    assert Counter(trials["condition"]) == dict.fromkeys(CONDITIONS, 10) | {"oracle": 4}
    assert shown["eeg"] == shown["shuffled_eeg"] == shown["no_structure"]
    assert not shown["eeg"] & shown["oracle"]
    assert not trials.duplicated(["condition", "image_id"]).any()
    assert trials["trial"].tolist() == list(range(1, 35))


def test_sides_and_foils_are_balanced_within_every_condition():
    for _, part in design().groupby("condition"):
        assert Counter(part["left"]) == {"image": len(part) // 2, "foil": len(part) // 2}
        assert sorted(part["foil_id"]) == sorted(part["image_id"])
        assert (part["foil_id"] != part["image_id"]).all()
    odd = design(n_items=7, conditions=CONDITIONS[:2], n_catch=0)
    assert Counter(odd["left"]) == {"image": 7, "foil": 7}


def test_a_picture_keeps_its_subject_and_subjects_are_balanced():
    trials = design().query("condition != 'oracle'")
    assert trials.groupby("image_id")["subject"].nunique().eq(1).all()
    assert sorted(Counter(trials["subject"]).values()) == [9, 9, 12]


def test_conditions_are_spread_over_the_session_and_no_picture_comes_twice_in_a_row():
    trials = design(n_items=12, n_catch=0)
    for start in (0, 12, 24):  # three rounds, four trials of each condition in each
        part = trials.iloc[start : start + 12]
        assert set(Counter(part["condition"]).values()) == {4}
        assert part["image_id"].nunique() == 12
    for seed in range(40):
        ids = design(n_items=3, n_catch=0, seed=seed)["image_id"].to_numpy()
        assert (ids[1:] != ids[:-1]).all()


def test_the_design_depends_on_seed_and_rater_and_on_nothing_else():
    first = design()
    pd.testing.assert_frame_equal(first, design())
    for other in (design(seed=1), design(rater="ben")):
        assert not other["image_id"].equals(first["image_id"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"conditions": ["eeg", "egg"]},
            "no reconstructions of the condition 'egg'; there are: eeg",
        ),
        ({"catch": "orakel"}, "condition 'orakel'"),
        ({"conditions": ["eeg", "oracle"]}, "meets a picture twice"),
        ({"conditions": ["eeg", "eeg"]}, "name each condition once"),
        ({"conditions": []}, "name each condition once"),
        ({"n_items": 21}, "n_items=21 with 20 pictures"),
        ({"n_items": 1}, "foils are the other pictures"),
        ({"n_catch": 1}, "n_catch=1"),
        ({"image_ids": [*IDS, IDS[0]]}, "twice among image_ids"),
    ],
)
def test_a_design_that_cannot_be_made_is_refused(changes, message):
    with pytest.raises(RatingsError, match=message):
        design(**changes)


@pytest.mark.parametrize(
    "name", ["", "../anna", "anna b", ".anna", "anna.csv", "a/b", "a" * 41, "all"]
)
def test_a_rater_whose_name_is_no_file_name_is_refused(name):
    with pytest.raises(RatingsError, match="cannot be the name of a rater"):
        design(rater=name)


# --- answers on the disk


def test_an_answer_is_on_the_disk_with_all_its_columns(tmp_path):
    session = Session(design(), tmp_path)
    trial = session.current
    session.answer("left", 2.5)
    with (tmp_path / "anna.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert list(row) == list(human_test_design.COLUMNS)
    assert (row["study"], row["rater"], row["trial"], row["seconds"]) == (
        *("tiny", "anna", "1", "2.500"),
    )
    assert row["correct"] == str(trial["left"] == "image")
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".csv"] == ["anna.csv"]


def test_an_interrupted_session_goes_on_where_it_stopped(tmp_path):
    trials = design()
    first = Session(trials, tmp_path)
    for _ in range(5):
        first.answer("left", 1.0)
    before = first.path.read_text()
    del first
    again = Session(trials, tmp_path)
    assert len(again.rows) == 5 and again.current["trial"] == 6
    answer_all(again, lambda trial: True)
    assert again.path.read_text().startswith(before)
    assert Session(trials, tmp_path).finished


def test_a_failed_write_leaves_the_old_file_and_the_session_where_it_was(tmp_path, monkeypatch):
    session = Session(design(), tmp_path)
    session.answer("left", 1.0)
    before = session.path.read_bytes()
    with monkeypatch.context() as patch:

        def full(*_):
            raise OSError(28, "No space left on device")

        patch.setattr("sgdm_utils.workflow.atomic.os.replace", full)
        with pytest.raises(OSError, match="is full: .* needs at least"):
            session.answer("right", 1.0)
    assert session.path.read_bytes() == before and session.current["trial"] == 2
    assert not list(tmp_path.glob(".*part*"))
    session.answer("right", 1.0)
    assert len(human_test_design.read_ratings(session.path)) == 2


def test_a_second_session_of_the_same_rater_is_noticed(tmp_path):
    trials = design()
    one, two = Session(trials, tmp_path), Session(trials, tmp_path)
    one.answer("left", 1.0)
    with pytest.raises(RatingsError, match="is the test open twice"):
        two.answer("right", 1.0)
    assert len(human_test_design.read_ratings(one.path)) == 1


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"conditions": CONDITIONS[:2]}, {"study": "demo"}, {"n_items": 9}]
)
def test_answers_to_another_design_are_refused(tmp_path, other):
    answer_all(Session(design(**other), tmp_path), lambda trial: True)
    before = (tmp_path / "anna.csv").read_bytes()
    with pytest.raises(RatingsError, match=r"anna.csv, line \d+ is no answer to trial \d+ of this"):
        Session(design(), tmp_path)
    assert (tmp_path / "anna.csv").read_bytes() == before


def test_more_answers_than_trials_are_refused(tmp_path):
    trials = design()
    answer_all(Session(trials, tmp_path), lambda trial: True)
    with pytest.raises(RatingsError, match="line 12 is no answer to trial 11"):
        human_test_design.read_ratings(tmp_path / "anna.csv", trials.iloc[:10])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-30], r"line 4 is damaged: 1?\d cells instead of 12"),
        (lambda text: text.replace(",1.000,", ",one,", 1), "line 2 is damaged: seconds is 'one'"),
        (lambda text: text.replace(",1.000,", ",nan,", 1), "line 2 is damaged: seconds is 'nan'"),
        (lambda text: text.replace(",True,", ",False,", 1), "contradict"),
        (lambda text: text.replace("anna", "ben", 1), "rater 'ben' in the file of 'anna'"),
        (lambda text: text.replace("tiny,anna,2,", "tiny,anna,1,"), "trial '1' where 2 has to"),
        (lambda text: text.replace(",left,", ",middle,").replace(",right,", ",middle,"), "middle"),
        (lambda text: text.replace("seconds", "time"), "the header is"),
        (lambda text: "", "the header is"),
        (lambda text: text + '"', "no CSV file of ratings"),
    ],
)
def test_a_damaged_file_is_refused_with_its_line(tmp_path, damage, message):
    trials = design()
    session = Session(trials, tmp_path)
    for _ in range(3):
        trial = session.current
        session.answer("left" if trial["left"] == "image" else "right", 1.0)
    session.path.write_text(damage(session.path.read_text()))
    with pytest.raises(RatingsError, match=message):
        Session(trials, tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "anna.csv").write_bytes(b"\xff\xfe\x00study")
    with pytest.raises(RatingsError, match="no CSV file of ratings"):
        Session(design(), tmp_path)


@pytest.mark.parametrize(("side", "seconds"), [("middle", 1), ("left", -1), ("left", float("nan"))])
def test_an_answer_that_is_none_is_refused(tmp_path, side, seconds):
    session = Session(design(), tmp_path)
    with pytest.raises(RatingsError, match="expected left or right, a time"):
        session.answer(side, seconds)
    assert not session.path.exists()


def test_the_time_stamp_changes_no_score(tmp_path):
    session = Session(design(), tmp_path)
    told = answer_all(session, lambda trial: trial["trial"] % 3)
    later = told.assign(timestamp="2001-01-01T00:00:00+00:00")
    pd.testing.assert_frame_equal(
        human_test_scores.score_conditions(told), human_test_scores.score_conditions(later)
    )  # fmt: skip


# --- the widget


def test_buttons_drive_the_whole_session(tmp_path, pictures, made):
    session = Session(design(), tmp_path)
    widget = RatingWidget(session, pictures, made, size=16, pause_s=0)
    expected = []
    for k in range(len(session.design)):
        assert widget.message.value == f"{k} of 34 answered"
        expected.append((session.current["left"] == "image") == (k % 2 == 0))
        (widget.left if k % 2 == 0 else widget.right).click()
    assert "Thank you" in widget.message.value
    assert widget.left.disabled and widget.right.disabled
    told = human_test_design.read_ratings(session.path, session.design)
    assert told["answer"].tolist() == ["left", "right"] * 17
    assert told["correct"].tolist() == expected
    widget.left.click()  # nothing more to answer, nothing more is written
    assert len(human_test_design.read_ratings(session.path)) == 34


def test_the_candidates_lie_where_the_design_says(tmp_path, pictures, made):
    session = Session(design(), tmp_path)
    widget = RatingWidget(session, pictures, made, size=16, pause_s=0)
    for _ in range(8):
        trial = session.current
        left = trial["image_id"] if trial["left"] == "image" else trial["foil_id"]
        right = trial["foil_id"] if trial["left"] == "image" else trial["image_id"]
        shown = made[trial["condition"], trial["subject"]][trial["image_id"]]
        for view, picture in (
            ("left", pictures[left]),
            ("right", pictures[right]),
            ("made", shown),
        ):
            assert widget._views[view].value == human_test_widget._png(picture, 16)
        widget.left.click()


def test_the_page_tells_neither_condition_nor_picture(tmp_path, pictures, made):
    session = Session(design(), tmp_path)
    widget = RatingWidget(session, pictures, made, size=16, pause_s=0)
    waiting, states = [widget.box], []
    while waiting:
        part = waiting.pop()
        waiting += list(getattr(part, "children", ()))
        states.append({k: v for k, v in part.get_state().items() if k != "children"})
    text = repr(states)
    secrets = [*CONDITIONS, "oracle", *SUBJECTS, *IDS, "anna"]
    assert len(states) >= 8 and not [s for s in secrets if s in text]


def test_the_second_half_of_a_double_click_answers_nothing(tmp_path, pictures, made):
    session = Session(design(), tmp_path)
    widget = RatingWidget(session, pictures, made, size=16, pause_s=60)
    widget.left.click()
    assert session.rows == [] and not session.path.exists()


def test_a_click_that_could_not_be_kept_is_told_and_stops_the_test(tmp_path, pictures, made):
    trials = design()
    session = Session(trials, tmp_path)
    widget = RatingWidget(session, pictures, made, size=16, pause_s=0)
    Session(trials, tmp_path).answer("left", 1.0)
    widget.right.click()
    assert widget.message.value.startswith("Not kept") and "open twice" in widget.message.value
    assert widget.left.disabled
    again = RatingWidget(Session(trials, tmp_path), pictures, made, size=16, pause_s=0)
    assert again.message.value == "1 of 34 answered"


# --- scores


def test_the_interval_is_that_of_clopper_and_pearson():
    told = pd.DataFrame({"rater": "anna", "condition": "eeg", "correct": [True] * 15 + [False] * 5})
    row = human_test_scores.score_conditions(told).iloc[0]
    assert (row["n"], row["value"], row["chance"]) == (20, 0.75, 0.5)
    assert row["ci_low"] == pytest.approx(beta.ppf(0.025, 15, 6))
    assert row["ci_high"] == pytest.approx(beta.ppf(0.975, 16, 5))
    # 20 + ... + 15 of 2^20 sequences by hand: 1 + 20 + 190 + 1140 + 4845 + 15504
    assert row["p_value"] == pytest.approx(21700 / 2**20)


def test_raters_have_rows_of_their_own(tmp_path):
    told = pd.concat(
        answer_all(Session(design(r), tmp_path), lambda trial, r=r: r == "anna")
        for r in ("anna", "ben")
    )
    table = human_test_scores.score_conditions(told).set_index(["rater", "condition"])["value"]
    assert table["anna", "eeg"] == 1 and table["ben", "eeg"] == 0 and table["all", "eeg"] == 0.5


def test_a_rater_of_known_accuracy_is_recovered_within_the_interval(tmp_path):
    """Nine or ten of ten 95 % intervals cover, with a seed fixed; the mean is right as well."""
    trials = design(n_items=20, n_catch=0)
    inside, values = 0, []
    for k in range(10):
        rng = np.random.default_rng(k)
        session = Session(trials.assign(rater=f"r{k}"), tmp_path)
        told = answer_all(session, lambda trial, rng=rng: rng.random() < 0.8)
        row = human_test_scores.score_conditions(told.assign(condition="eeg")).iloc[0]
        inside += row["ci_low"] <= 0.8 <= row["ci_high"]
        values.append(row["value"])
        assert row["p_value"] < 0.01
    assert inside >= 9 and np.mean(values) == pytest.approx(0.8, abs=0.03)


def test_a_rater_who_guesses_is_at_chance_and_lapses_are_seen(tmp_path):
    trials = design(n_items=20, n_catch=20)
    rng = np.random.default_rng(3)
    guessed = answer_all(Session(trials, tmp_path), lambda trial: rng.random() < 0.5)
    overall = human_test_scores.score_conditions(guessed).query("rater == 'all'")
    assert (overall["ci_low"] < 0.5).all() and (overall["ci_high"] > 0.5).all()
    assert (overall["p_value"] > 0.01).all()
    report = human_test_scores.catch_trials(guessed).iloc[0]
    assert not report["kept"] and report["lapse_rate"] > 0.5
    awake = answer_all(
        Session(trials.assign(rater="ben"), tmp_path), lambda trial: trial["condition"] == "oracle"
    )
    report = human_test_scores.catch_trials(awake).iloc[0]
    assert report["kept"] and report["lapse_rate"] == 0
    with pytest.raises(RatingsError, match="no catch trial to judge by"):
        human_test_scores.catch_trials(awake.query("condition == 'eeg'"))


def answers(rater, right_eeg, right_shuffled):
    """Ratings of one rater: lists of 0 and 1 for the pictures, in two conditions."""
    parts = []
    for condition, right in (("eeg", right_eeg), ("shuffled_eeg", right_shuffled)):
        ids = [f"p{i}" for i in range(len(right))]
        parts.append(pd.DataFrame({"image_id": ids, "correct": np.array(right, bool)}).assign(
            rater=rater, condition=condition))  # fmt: skip
    return pd.concat(parts)


def test_the_permutation_test_is_exact_where_it_can_be_counted():
    """Five pictures better, one worse: of 2^6 sign patterns 7 have a sum of at least 4."""
    told = answers("anna", [1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1])
    row = human_test_scores.compare_conditions(
        told, ["eeg > shuffled_eeg"], np.random.default_rng(0)
    ).iloc[0]
    assert row["difference"] == pytest.approx(4 / 6)
    assert row["p_value"] == pytest.approx(7 / 64)
    assert (row["n_raters"], row["n_items"]) == (1, 6)


def test_raters_of_the_same_pictures_are_no_further_pictures():
    """Ten raters who copy each other are one rater: the p-value is that of the six pictures."""
    one = ([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1])
    told = pd.concat(answers(f"r{k}", *one) for k in range(10))
    row = human_test_scores.compare_conditions(
        told, ["eeg > shuffled_eeg"], np.random.default_rng(0)
    ).iloc[0]
    assert row["p_value"] == pytest.approx(7 / 64) and row["n_raters"] == 10


def test_every_rater_counts_alike_however_many_pictures_they_judged():
    told = pd.concat([answers("anna", [1] * 8, [0] * 8), answers("ben", [0, 0], [0, 0])])
    row = human_test_scores.compare_conditions(
        told, ["eeg > shuffled_eeg"], np.random.default_rng(0)
    ).iloc[0]
    assert row["difference"] == pytest.approx((1.0 + 0.0) / 2)


def test_a_comparison_of_what_was_not_rated_is_refused():
    told = answers("anna", [1, 1], [0, 0])
    rng = np.random.default_rng(0)
    for wrong in ("eeg > egg", "eeg", "eeg < shuffled_eeg"):
        with pytest.raises(
            RatingsError, match="with conditions that were rated: eeg, shuffled_eeg"
        ):
            human_test_scores.compare_conditions(told, [wrong], rng)
    with pytest.raises(RatingsError, match="fewer than two pictures"):
        human_test_scores.compare_conditions(answers("anna", [1], [0]), ["eeg > shuffled_eeg"], rng)


def test_holm_runs_over_conditions_and_comparisons_together():
    scores = pd.DataFrame(
        {"rater": ["all", "all", "anna"], "condition": ["eeg", "oracle", "eeg"], "p_value": [0.01, 0, 1]}
    )  # fmt: skip
    compared = pd.DataFrame({"comparison": ["eeg > shuffled_eeg"], "p_value": [0.04]})
    table = human_test_scores.family(scores, compared, ["eeg"])
    assert table["test"].tolist() == ["eeg > 0.5", "eeg > shuffled_eeg"]
    assert table["p_holm"].tolist() == pytest.approx([0.02, 0.04])


def test_the_simulated_rater_sees_what_pixels_tell(tmp_path, pictures, made):
    trials = design(n_items=20, n_catch=0)

    def share(**how):
        rng = np.random.default_rng(0)
        picked = human_test_scores.simulated_rater(trials, pictures, made, rng, **how)
        right = (trials["left"] == "image") == (np.array(picked) == "left")
        return right.groupby(trials["condition"]).mean()

    clean = share(noise=0.0)
    assert clean["eeg"] == 1 and clean["no_structure"] == 1
    assert clean["shuffled_eeg"] < 0.75  # the picture given back is neither of the two
    assert 0.3 < share(noise=1e6)["eeg"] < 0.7
    assert 0.3 < share(noise=0.0, lapse=1.0)["eeg"] < 0.7
    assert human_test_scores.simulated_rater(trials, pictures, made, np.random.default_rng(1)) == (
        human_test_scores.simulated_rater(trials, pictures, made, np.random.default_rng(1))
    )


def test_a_constant_reconstruction_is_like_nothing():
    flat = np.full((4, 4, 3), 7, np.uint8)
    assert human_test_scores._likeness(flat, np.arange(48).reshape(4, 4, 3)) == 0.0
