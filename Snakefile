# The graph of the study: which notebook runs after which, for each subject and each training seed.
#
#   snakemake --cores 1 --config study=demo          run what is missing or out of date
#   snakemake --cores 1 --config study=demo -n       show what would run, and why
#   snakemake --cores 1 --config study=demo extra_seeds=true    train with the extra seeds, too
#   snakemake --profile config/profiles/slurm ...    the same on a cluster
#
# A step runs again when its notebook, a helper module that the notebook imports, the locked packages or a
# parameter has changed, or one of its inputs runs again. Comments, stored outputs and dates do not count.
import os
import shlex
import sys

from sgdm_utils.workflow import artifacts, digests, paths
from sgdm_utils.workflow import config as study_config


workdir: str(paths.project_root())


PYTHON = shlex.quote(sys.executable)
TRAINING = {"encoder_pretrained", "encoder", "structure", "pipeline"}
# The engine would tell every job to compute with as many threads as its rule has. Here a notebook uses what it
# finds, or what these variables said before the engine started.
THREADS = " ".join(
    f"export {name}={shlex.quote(os.environ[name])};" if name in os.environ else f"unset {name};"
    for name in (
        *("OMP_NUM_THREADS", "GOTO_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
        *("VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS"),
    )
)
# People are prepared side by side. A training counts as two cores, so that on a laptop it has the machine,
# unless it was told to compute with fewer threads.
CORES = int(os.environ.get("OMP_NUM_THREADS", "2").split(",")[0] or 2)

try:
    STUDY = study_config.load_study(str(config.get("study", "demo")))
    PLAN = study_config.plan(STUDY, extra_seeds=bool(config.get("extra_seeds", False)))
    PARAMETERS = {step: study_config.resolve(STUDY, step) for step in PLAN}
except study_config.ConfigError as error:
    sys.exit(f"{error}")  # written to stderr also where the engine was told to be quiet

# Somebody may have run a notebook by hand, with other parameters, or damaged a file: the engine would
# not see that, the manifests do.
for step in PLAN:
    artifacts.forget_unless_current(step.artifact, PARAMETERS[step])


def content(step):
    """The file of a result that changes when, and only when, the result does."""
    return paths.relative(step.artifact / artifacts.CONTENT)


def earlier(step):
    """What a step reads: results of its own subject and seed, where it has one."""
    return [
        content(other)
        for other in PLAN
        if other.stage in paths.STAGES[step.stage].reads
        and (None in (step.subject, other.subject) or step.subject == other.subject)
        and other.seed in (None, step.seed)
    ]


def page(step):
    """The page that the last step of each seed writes beside its artifact."""
    if step.stage != "report":
        return []
    return [paths.relative(study_config.page_dir(STUDY, step.seed) / "index.html")]


rule all:
    default_target: True
    input:
        [content(step) for step in PLAN],
        [made for step in PLAN for made in page(step)],


for step in PLAN:

    rule:
        name:
            "_".join(
                filter(None, [step.notebook, step.subject, step.seed is not None and f"seed{step.seed}"])
            )
        input:
            earlier(step),
            notebook=ancient(paths.relative(paths.notebook_path(step.notebook))),
        output:
            content(step),
            page(step),
        log:
            paths.relative(step.executed),
        params:
            code=digests.notebook_code_digest(step.notebook),
            parameters=study_config.parameters_digest(STUDY, step),
            command=step.command.removeprefix("python "),
        threads: 1 if step.subject else CORES
        priority: -list(paths.STAGES).index(step.stage)  # among those that can run, in the order of their numbers
        resources:
            **({"gpu": 1} if step.stage in TRAINING else {}),
        shell:
            "{THREADS} {PYTHON} {params.command}"
