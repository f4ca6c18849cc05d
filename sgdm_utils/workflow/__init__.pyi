from .artifacts import read_artifact, write_artifact
from .atomic import atomic_directory, atomic_file, digest_file
from .config import collect, load_study, page_dir
from .downloads.fetch import fetch
from .paths import STAGES, notebook_dir, raw_dir, relative, report_dir, stage_dir, study_dir
