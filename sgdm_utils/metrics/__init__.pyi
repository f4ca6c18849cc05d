from . import suite
from .audits import (
    as_table,
    audit_dimension,
    audit_diversity,
    audit_hubness,
    audit_transduction,
    enforce,
)
from .hubs import csls
from .memorisation import audit_memorisation, feature_nearness, pixel_nearness
from .pixels import mse, pixcorr, ssim
from .retrieval import (
    cosine_similarity,
    derangement,
    hubness_skewness,
    identification_matrix,
    rank_matrix,
    retrieval_ranks,
    two_way_identification,
)
from .statistics import (
    bootstrap_interval,
    holm,
    label_permutation_null,
    paired_permutation_test,
    power_statement,
)
from .structure import boundary_f, iou, relation_accuracy
from .tables import (
    make_row,
    merge_seeds,
    of_seed,
    publish_table,
    read_table,
    replace_seeds,
    summarise,
    write_table,
)
