from .epoching import choose_repetitions, cut_epochs, touches_bad
from .files import Averages, TrialFile
from .live import (
    CausalFilter,
    EpochCutter,
    LiveEpoch,
    LiveError,
    impulse_response,
    spatial_operator,
)
from .load import AveragingSampler, Unwhitened, load_trials, unwhitening
from .lsl import LSLReceiver, StreamLost, require_lsl
from .noise import NoiseError, NoiseModel
from .quality import (
    MIN_CEILING_IMAGES,
    average_repetitions,
    find_bad_channels,
    n_repeated_images,
    repetition_groups,
    split_half_reliability,
)
from .whitening import noise_covariance, session_whitener
from .writing import TrialWriter
