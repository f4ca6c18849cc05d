# The graph of the study: which notebook runs after which, for each subject and each training seed.
#
#   snakemake --cores 1 --config study=demo          run what is missing or out of date
#   snakemake --cores 1 --config study=demo -n       show what would run, and why; changes nothing
#   snakemake --cores 1 --config study=demo extra_seeds=true    train with the extra seeds, too
#   snakemake --cores 1 --config sweep=cleaning -n   the studies of config/sweeps/cleaning.yaml and their table
#   snakemake --profile config/profiles/slurm ...    the same on a cluster
#
# A step runs again when its notebook, a helper module that the notebook imports, the locked packages, a
# parameter or the recording has changed, or one of its inputs runs again: the manifests of the results
# tell it. Comments, stored outputs and dates do not count.
import os
import shlex
import sys
import tempfile
import time

from sgdm_utils.workflow import artifacts, locks, machine, paths, run, status
from sgdm_utils.workflow import config as study_config


PYTHON = shlex.quote(sys.executable)
# The engine would tell every job to compute with as many threads as its rule has. Here a notebook takes half of the
# processors (`machine.share_processors`), or what these variables said before the engine started; on a cluster as many as the job was given, where it may see
# all cores of the node.
GIVEN = os.environ.get("SLURM_CPUS_PER_TASK")
THREADS = " ".join(
    f"export {name}={shlex.quote(value)};" if (value := os.environ.get(name) or GIVEN) else f"unset {name};"
    for name in machine.THREAD_VARIABLES
)
# A notebook counts as half of the cores that the engine was given, so two run side by side, of trainings as many as
# there are cards (`--resources gpu=2`); or as the threads it was told to compute with. One for a single person computes
# with one thread.
CORES = int((os.environ.get("OMP_NUM_THREADS") or "0").split(",")[0]) or max(1, (workflow.resource_settings.cores or 2) // 2)
# For clusters: who computes on a card (on a part of one: --config card=shard:1), memory (MB) and time (minutes), both
# doubled when a job has to be repeated.
CARD = {"gres": str(config["card"])} if "card" in config else {"gpu": 1}
GPU = {"clip", "encoder_pretrained", "encoder", "structure", "generator", "reconstructions"}
NEEDS = {"data": (8000, 120), "generator": (32000, 720), "pipeline": (16000, 60), "reconstructions": (32000, 480), "report": (8000, 60)}

AHEAD = {"clip", "forward"}  # the longest training waits for the one, and the other is longer than its neighbour 04

STARTED = time.time()
NAMED = shlex.quote(locks.engine_name())
ENGINE = workflow.is_main_process and not workflow.output_settings.dryrun
try:
    SWEEP = study_config.load_sweep(str(config["sweep"])) if "sweep" in config else None
    STUDY = None if SWEEP else study_config.load_study(config.get("study", "demo"))
    STUDIES = {study.study: study for study in (SWEEP.members.values() if SWEEP else [STUDY])}
    NAME = SWEEP.name if SWEEP else STUDY.study
    PLAN = [
        step
        for study in STUDIES.values()
        for step in study_config.plan(study, extra_seeds=bool(config.get("extra_seeds", False)))
    ]
    HOME = paths.study_dir(NAME)
    if braces := [str(p) for p in (HOME, paths.reports_dir()) if set("{}") & set(str(p))]:
        sys.exit(f"{braces[0]}: braces in the name of a folder have a meaning for the engine. Rename it")
    if ENGINE:
        for name in {NAME, *STUDIES}:
            for folder in (paths.study_dir(name), paths.report_dir(name)):
                run.require_writable(folder)
            locks.hold_until_exit(run.engine_lock(name), f"study {name!r}")
except (study_config.ConfigError, locks.BusyError) as error:
    sys.exit(f"{error}")  # written to stderr also where the engine was told to be quiet
except OSError as error:
    sys.exit(run.explain(error))


# The engine keeps its own books (.snakemake) in the folder it works in: beside the results, where it can write.
# A plan leaves nothing.
if workflow.output_settings.dryrun:
    NOWHERE = tempfile.TemporaryDirectory()


workdir: NOWHERE.name if workflow.output_settings.dryrun else str(HOME)


def content(step):
    """The file of a result that changes when, and only when, the result does."""
    return str(step.artifact / artifacts.CONTENT)


def page(step):
    """The page that the last step of each seed writes beside its artifact."""
    made = status.page_of(STUDIES[step.study], step)
    return [str(made)] if made else []


def called(step):
    """What the engine calls a step."""
    return f"{step.study}_{step.name}" if SWEEP else step.name


def states():
    """The state of every step; asked once, when the engine plans."""
    if not STATES:
        dag = workflow.dag
        again = [
            step for step in PLAN
            if called(step) in {rule.name for rule in dag.forcerules}
            or {str(step.artifact / artifacts.CONTENT), *map(str, page(step))} & set(dag.forcefiles)
        ]
        for study in STUDIES.values():
            steps = [step for step in PLAN if step.study == study.study]
            STATES.update(status.survey(study, steps, again=again))
        if ENGINE:
            run.sweep(PLAN, {step for step, state in STATES.items() if not state.why})
        # Whether a file is complete the manifests know better than marks of a killed engine.
        dag.ignore_incomplete = True
        dag.workflow.dag_settings.rerun_triggers = frozenset()
        if workflow.output_settings.dryrun:
            for state in STATES.values():
                if state.why:
                    print(f"{called(state.step)}: {state.why}")
            print(status.expected(STATES.values()))
    return STATES


STATES = {}
TABLE = str(paths.report_dir(NAME) / "tables" / "sweep.csv")
SWEEP_PAGE = str(paths.report_dir(NAME) / "index.html")


def inputs(step):
    """What a step reads. Asked when the engine plans: then what is not fresh is told to run."""

    def of(wildcards):
        if states()[step].why:
            workflow.dag.forcefiles.add(str(step.artifact / artifacts.CONTENT))
        # Dates do not count; that an input is computed anew does.
        return [
            content(other) if states()[other].why else ancient(content(other))
            for other in study_config.reads(step, PLAN)
        ]

    return of if workflow.is_main_process else [content(o) for o in study_config.reads(step, PLAN)]


def needs(step, which):
    """Memory in MB or time in minutes."""
    amount = NEEDS.get(step.stage, (16000, 240))[which]
    return lambda wildcards, attempt: amount * 2 ** (attempt - 1)


rule all:
    default_target: True
    input:
        [content(step) for step in PLAN],
        [made for step in PLAN for made in page(step)],
        [TABLE, SWEEP_PAGE] if SWEEP else [],


if SWEEP:

    rule:
        name:
            "sweep_table"
        input:
            [content(step) for step in PLAN],
            ancient(str(SWEEP.path)),
        output:
            TABLE,
            SWEEP_PAGE,
        localrule: True
        shell:
            "{PYTHON} -m sgdm_utils sweep {NAME}"


def fresh():
    """The steps whose results are what the study asks for: those that were, and those that have just run."""
    made = [(step, step.artifact / artifacts.CONTENT) for step in PLAN]
    return {
        step for step, file in made
        if file.is_file() and (not states()[step].why or file.stat().st_mtime >= STARTED)
    }


onsuccess:  # a process whose engine was killed may have ended since this one started
    run.sweep(PLAN, fresh())


onerror:  # the last words on the console, also where other jobs went on
    for step in PLAN:
        if told := run.last_failure(step, STARTED):
            print(told, file=sys.stderr)


for step in PLAN:

    rule:
        name:
            called(step)
        input:
            inputs(step),
        output:
            content(step),
            page(step),
        log:
            str(step.executed),  # (removed by the engine before each attempt, so not the place for `run.log_of`)
        params:
            command=step.command.removeprefix("python "),
        threads: 1 if step.subject else CORES
        # Among those that can run, in the order of their numbers; but first what most of the rest waits for.
        priority: 1 if step.stage in AHEAD else -list(paths.STAGES).index(step.stage)
        resources:
            mem_mb=needs(step, 0),
            runtime=needs(step, 1),
            **({**CARD, "tasks": 1} if step.stage in GPU else {}),
        shell:
            "{THREADS} export {locks.ENGINE}={NAMED}; {PYTHON} {params.command}"
