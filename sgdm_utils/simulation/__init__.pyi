from .brain import EEG_CHANNELS, make_brain, make_info, scaled_features, source_features
from .recording import make_stream, simulate_run
from .truth import (
    Truth,
    load_truth,
    open_truth,
    pattern_correlation,
    save_truth,
    template_retrieval,
)
