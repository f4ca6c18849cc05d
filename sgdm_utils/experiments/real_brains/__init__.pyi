from .files import (
    MISSING,
    Pictures92,
    RealBrainError,
    check_order,
    check_rdms,
    find_files,
    read_embeddings,
    read_pictures,
    read_rdms,
)
from .geometry import (
    GeometryDecoder,
    fit_into,
    nearest_in,
    noise_ceiling,
    outlined,
    partition_variance,
    rank_correlation,
    spread_of,
    two_way_among,
    upper,
)
from .two_classes import auc_over_runs, bin_means, prepare_muse, within_run_null
