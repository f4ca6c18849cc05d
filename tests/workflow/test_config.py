"""Configurations: refused with a useful message before anything runs."""

from __future__ import annotations

import re

import nbformat
import pytest

from sgdm_utils.workflow import config, parameters, paths
from sgdm_utils.workflow.notebook import begin

DATA_CELL = """
study: str = "demo"  # name of the study
subjects: list[str] = ["sub-01"]  # who was recorded
seed: int = 7  # of the simulation
snr: float = 1.0  # gain; 0 = noise alone
n_scenes: int = 40  # pictures
use_ica: bool = True  # remove eye movements
channels: list[str] = []  # to drop
keep: dict[str, list[str]] = {}  # rows, by column
limit: int | None = None  # trials
"""
LATER_CELL = (
    'study: str = "demo"  # name\nseed: int = 0  # of training\nrate: float = 1.0e-3  # step'
)

TRAINED = (
    "02",
    "02b",
    "03",
    "04",
    "04b",
    "05",
    "05b",
    "06",
)  # once for each seed, the page left out


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Two folders, config and notebooks, of a temporary project; writes a config when called."""
    folders = {name: tmp_path / name for name in ("config", "notebooks")}
    for folder in folders.values():
        folder.mkdir()
    (folders["config"] / "schema.json").write_text((paths.config_dir() / "schema.json").read_text())
    monkeypatch.setattr(paths, "config_dir", lambda: folders["config"])
    monkeypatch.setattr(paths, "notebook_dir", lambda: folders["notebooks"])
    for stage in paths.STAGES.values():
        write_notebook(stage.notebook, LATER_CELL)
    write_notebook("00_data", DATA_CELL)
    write_notebook("01_preprocessing", 'study: str = "demo"\nsubject: str = "sub-01"\n')

    def write(text: str = "", name: str = "mine", subjects: str = "[sub-01, sub-02]") -> None:
        (folders["config"] / f"{name}.yaml").write_text(
            f"study: mine\nsubjects: {subjects}\nseeds: [0, 3]\n{text}"
        )

    write()
    return write


def write_notebook(name: str, source: str) -> None:
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), paths.notebook_path(name))


def section(text: str) -> str:
    return f"notebooks:\n  00_data:\n    {text}\n"


def refusal(study: str = "mine") -> str:
    with pytest.raises(config.ConfigError) as caught:
        config.load_study(study)
    return str(caught.value)


def test_the_plan_is_every_notebook_for_every_subject_and_seed_in_order(project):
    steps = config.plan(config.load_study("mine"))
    assert [(s.notebook.split("_")[0], s.subject, s.seed) for s in steps] == [
        ("00", None, None),
        ("01", "sub-01", None),
        ("01", "sub-02", None),
        *((n, None, seed) for seed in (0, 3) for n in (*TRAINED, "07")),
    ]
    assert steps[1].command == (
        "python -m sgdm_utils run 01_preprocessing --study mine --subject sub-01"
    )
    assert steps[-1].artifact == paths.stage_dir("mine", "joint", "report", 3)
    assert steps[-1].executed.name == "joint_seed-3_07_figures.ipynb"


def test_extra_seeds_run_on_request_only_and_end_with_the_evaluation(project):
    plain = config.plan(config.load_study("mine"))
    project("extra_seeds: [5]\n")
    mine = config.load_study("mine")
    assert config.plan(mine) == plain
    added = config.plan(mine, extra_seeds=True)[len(plain) :]
    assert [(s.notebook.split("_")[0], s.seed) for s in added] == [(n, 5) for n in TRAINED]
    assert config.step(mine, "06_evaluation", seed=5) == added[-1]
    project("extra_seeds: [3, 5]\n")
    assert "extra_seeds: 3 is one of seeds already" in refusal()


def test_values_come_from_defaults_then_configuration_then_plan(project):
    project(section("{snr: 2, limit: 5, keep: {trial_type: [face]}}"))
    study = config.load_study("mine")
    values = config.resolve(study, config.step(study, "00_data"))
    assert values["study"] == "mine" and values["subjects"] == ["sub-01", "sub-02"]
    assert values["seed"] == 7  # the simulation's, not a training seed
    assert values["snr"] == 2.0 and isinstance(values["snr"], float)
    assert values["limit"] == 5 and values["n_scenes"] == 40
    step = config.step(study, "03_contrastive_alignment", seed=3)
    assert config.resolve(study, step) == {"study": "mine", "seed": 3, "rate": 1e-3}


def test_the_digest_changes_with_any_value_also_with_a_default(project):
    study = config.load_study("mine")
    step = config.step(study, "03_contrastive_alignment", seed=3)
    before = config.parameters_digest(study, step)
    assert config.parameters_digest(study, step) == before
    write_notebook("03_contrastive_alignment", LATER_CELL.replace("1.0e-3", "2.0e-3"))
    assert config.parameters_digest(study, step) != before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("snr_db: 3.0", ["notebooks.00_data.snr_db: unknown parameter", "Did you mean snr"]),
        ("zzz: 3.0", ["The parameters are: seed, snr, n_scenes"]),
        ("snr: 1e-4", ["'1e-4' is of type str where float"]),
        ("snr: '0.5'", ["'0.5' is of type str where float", "write 0.5"]),
        ("snr: true", ["True is of type bool where float"]),
        ("snr: .inf", ["inf is of type float where float", "it is not finite"]),
        ("n_scenes: 1.5", ["1.5 is of type float where int is declared (default 40)"]),
        ("n_scenes: true", ["True is of type bool where int"]),
        ("use_ica: 1", ["1 is of type int where bool"]),
        ("channels: Fp1", ["'Fp1' is of type str where list[str]"]),
        ("channels: [Fp1, no]", ["['Fp1', False] is of type list where list[str]"]),
        ("keep: {a: b}", ["{'a': 'b'} is of type dict where dict[str, list[str]]"]),
        ("study: other", ["notebooks.00_data.study: is set for you"]),
        ("subjects: [sub-01]", ["notebooks.00_data.subjects: is set for you"]),
    ],
)
def test_a_parameter_that_does_not_fit_is_named_with_its_remedy(project, text, expected):
    project(section(text))
    message = refusal()
    assert "mine.yaml cannot be used" in message
    for part in expected:
        assert part in message


@pytest.mark.parametrize(
    ("parameter", "text", "value"),
    [
        ("snr", "1e-4", 1e-4),
        ("snr", "125e-6", 125e-6),
        ("snr", "1e17", 1e17),
        ("n_scenes", "1e4", 10_000),
        ("n_scenes", "'12'", 12),
        ("n_scenes", "1.5e0", None),
        ("n_scenes", "inf", None),
        ("limit", "2e1", 20),
    ],
)
def test_a_remedy_for_a_number_helps_when_it_is_followed(project, parameter, text, value):
    project(section(f"{parameter}: {text}"))
    advice = re.findall(r"YAML reads this as text: write (\S+)", refusal())
    assert bool(advice) == (value is not None)
    for followed in advice:
        project(section(f"{parameter}: {followed}"))
        assert config.load_study("mine").notebooks["00_data"][parameter] == value


@pytest.mark.parametrize(
    "name", ["2026_11", "007", "1e3", "0x1F", "nan", "inf", "true", "no", "null"]
)
def test_a_study_that_a_command_line_takes_for_something_else_is_refused(project, name):
    assert "Rename the file and its first line, e.g. study_" + name in refusal(name)
    text = (paths.config_dir() / "mine.yaml").read_text().replace("study: mine", f"study: '{name}'")
    (paths.config_dir() / f"{name}.yaml").write_text(text)
    assert "on the way through a command line. Rename the file" in refusal(name)
    assert "a study cannot be called 7" in refusal(7)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("notebooks: {1: {}}", "the key 1 is no text: put it in quotes"),
        ("notebooks: {00_data: {2: 3}}", "the key 2 is no text"),
        ("notebooks: {? [a] : 3}", "is no text"),
        ("notebooks: {true: {}}", "the key True is no text"),
        (section("channels: [2026-11-29]"), "'2026-11-29' is read as a date: put it in quotes"),
        (section("channels: 2026-13-45"), "'2026-13-45' is read as a date"),
        (section("seed: 1:30"), "'1:30' is read as 90: write that, or put it in quotes"),
        (section("seed: 010"), "'010' is read as 8"),
        (section("seed: 1_0.5"), "'1_0.5' is read as 10.5"),
        (section("channels: !!omap [a: 1]"), "is read as a omap"),
        (section("channels: {<<: {a: 1}}"), "'<<' is read as a merge"),
        (section("channels: !!set {a}"), "is no valid YAML"),
        (section("channels: !!binary YQ=="), "is read as a bytes"),
        (section("channels: &x [*x]"), "*x: write out what it refers to"),
        (section("seed: " + "9" * 5000), "a value cannot be read"),
        ("notebooks: " + "[" * 3000, "a value cannot be read (RecursionError"),
        (section("channels: [\0]"), "is no valid YAML"),
    ],
)
def test_what_yaml_makes_of_odd_keys_and_values_is_refused_with_its_place(project, text, expected):
    project(text)
    message = refusal()
    assert expected in message and "mine.yaml" in message


def test_a_training_seed_cannot_be_set_in_a_section(project):
    project("notebooks: {03_contrastive_alignment: {seed: 4}}")
    assert "03_contrastive_alignment.seed: is set for you" in refusal()


def test_a_parameter_of_another_notebook_is_sent_there(project):
    """As those of a configuration that was written before a notebook was divided."""
    project("notebooks: {03_contrastive_alignment: {snr: 1.0}}")
    message = refusal()
    assert "unknown parameter. It is one of 00_data: write it in that section" in message


def test_all_findings_are_listed_at_once(project):
    project("notebooks: {00_data: {snr: a, n_scene: 3}, 03_contrastive_alignement: {rate: 1.0}}")
    message = refusal()
    assert message.count("\n") == 3
    assert "Did you mean n_scenes" in message
    assert "there is no notebook '03_contrastive_alignement'" in message
    assert "Did you mean 03_contrastive_alignment?" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("notebook: {}", "notebook: unknown key. Did you mean notebooks?"),
        ("seeds: [1]", "the key 'seeds' stands there twice"),
        ("notebooks: [1", "is no valid YAML"),
        ("notebooks: {00_data: 3}", "notebooks.00_data: 3 is not of type"),
    ],
)
def test_a_wrong_frame_is_refused(project, text, expected):
    project(text)
    assert expected in refusal()


@pytest.mark.parametrize(
    ("subjects", "expected"),
    [
        ("[]", "subjects: [] should be non-empty. Subjects as BIDS names them"),
        ("[sub-01, sub-01]", "has non-unique elements"),
        ("[1]", "subjects[0]: 1 is not of type 'string'"),
        ("['01']", "subjects[0]: '01' does not match '^sub-"),
    ],
)
def test_wrong_subjects_are_refused(project, subjects, expected):
    project(subjects=subjects)
    assert expected in refusal()


def test_a_file_of_another_name_is_refused(project):
    project(name="other")
    assert "study: is 'mine', but the file is named other.yaml" in refusal("other")


def test_a_missing_study_says_which_there_are(project):
    assert "Did you mean mine?" in refusal("mime")
    assert "The studies are: mine" in refusal("zzz")


def test_empty_sections_are_no_error(project):
    project("notebooks:\n  00_data:\n")
    assert config.load_study("mine").notebooks == {"00_data": {}}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("00_dta",), "Did you mean 00_data?"),
        (("01_preprocessing",), "--subject is needed; choose from: sub-01, sub-02"),
        (("01_preprocessing", "sub-9"), "--subject sub-9 is not part of study 'mine'; choose"),
        (("00_data", "sub-01"), "takes no subject: leave --subject sub-01 out"),
        (("00_data", None, 0), "takes no seed"),
        (("03_contrastive_alignment",), "--seed is needed; choose from: 0, 3"),
        (("03_contrastive_alignment", None, 1), "--seed 1 is not part of study"),
    ],
)
def test_a_step_that_is_not_in_the_plan_is_refused(project, arguments, expected):
    with pytest.raises(config.ConfigError) as caught:
        config.step(config.load_study("mine"), *arguments)
    assert expected in str(caught.value)


def test_a_study_ends_where_it_says(project):
    """By the command and by hand in Jupyter; changing what the message names lets both go on."""
    project("until: 01_preprocessing\n")
    by_hand = {"study": "mine", "seed": 0, "rate": 1e-3}
    for start in (
        lambda: config.step(config.load_study("mine"), "03_contrastive_alignment", seed=0),
        lambda: begin("03_contrastive_alignment", by_hand),
    ):
        project("until: 01_preprocessing\n")
        with pytest.raises(config.ConfigError, match="'mine' ends with 01_preprocessing") as caught:
            start()
        project(re.search(r"until: \w+", str(caught.value)).group() + "\n")
        start()
        project()  # or left out
        start()
    project("until: 01_preprocessing\n")
    begin("01_preprocessing", {"study": "mine", "subject": "sub-01"})
    begin("03_contrastive_alignment", by_hand | {"study": "of no configuration"})


def test_a_notebook_that_does_not_take_what_the_plan_tells_it_is_refused(project):
    write_notebook("03_contrastive_alignment", 'study: str = "demo"')
    study = config.load_study("mine")
    with pytest.raises(config.ConfigError, match="declares no parameter of that name. Add: seed"):
        config.resolve(study, config.step(study, "03_contrastive_alignment", seed=0))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a = 1", "'a = 1' in the parameters cell is not 'name: type = literal'"),
        ("a: int = 1\nprint(a)", "'print(a)' in the parameters cell is not"),
        ("a: int = 1 + n", "a parameter is a literal"),
        ("a: int = len('x')", "a parameter is a literal"),
        ("a: int = 1\na: int = 2", "'a' is declared twice"),
        ("a: int = 1.5", "the default of parameter 'a': 1.5 is of type float where int"),
        ("a: Path = 'x'", "type 'Path' cannot be checked"),
        ("a: int = ", "no valid Python"),
    ],
)
def test_a_parameters_cell_that_is_not_as_it_should_be_is_refused(source, expected):
    with pytest.raises(parameters.ParameterError) as caught:
        parameters.parse(source)
    assert expected in str(caught.value)


def test_a_parameter_keeps_its_comment_and_its_type():
    found = parameters.parse("a: int | None = None  # hertz; b = 3\nb: 'list[int]' = [-1]\n")
    assert found["a"] == parameters.Parameter("a", "int | None", None, "hertz; b = 3")
    assert found["b"].default == [-1] and found["b"].annotation == "list[int]"
    long = parameters.parse("a: float = (\n    0.25  # share\n)")["a"]
    assert (long.default, long.help) == (0.25, "share")


@pytest.mark.parametrize("tags", [[], ["other"]])
def test_a_notebook_without_parameters_cell_is_refused(project, tags):
    cell = nbformat.v4.new_code_cell("a: int = 1", metadata={"tags": tags})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), paths.notebook_path("00_data"))
    with pytest.raises(config.ConfigError, match="0 cells are tagged 'parameters'"):
        config.notebook_parameters("00_data")


def test_a_file_that_is_no_notebook_is_refused(project):
    paths.notebook_path("00_data").write_text("{")
    with pytest.raises(config.ConfigError, match="00_data.ipynb: this is no notebook"):
        config.notebook_parameters("00_data")


@pytest.mark.parametrize("study", config.studies())
def test_every_committed_study_is_valid(study):
    steps = config.plan(loaded := config.load_study(study))
    for step in steps:
        assert config.resolve(loaded, step)["study"] == study


def test_the_demo_is_the_defaults():
    """What JupyterLab, nbval and make demo run is one and the same thing."""
    demo = config.load_study("demo")
    assert demo.notebooks == {}
    for notebook in {step.notebook for step in config.plan(demo)}:
        step = next(s for s in config.plan(demo) if s.notebook == notebook)
        defaults = {n: p.default for n, p in config.notebook_parameters(notebook).items()}
        assert config.resolve(demo, step) == defaults
