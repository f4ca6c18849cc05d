from .artifacts import Artifact, read_artifact, write_artifact
from .atomic import atomic_directory, atomic_file, digest_file
from .config import ConfigError, load_study, page_dir
from .downloads.fetch import fetch
from .machine import one_thread, side_by_side
from .notebook import Run, begin, require
from .paths import STAGES, notebook_dir, raw_dir, relative, report_dir, stage_dir, study_dir
