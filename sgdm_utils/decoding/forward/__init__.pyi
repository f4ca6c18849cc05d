from . import ceilings
from .model import ForwardError, ForwardModel, identify
from .picture_features import PictureFeatures, components_for
from .posterior import (
    cross_covariance,
    effective_size,
    favour_categories,
    posterior_mean,
    posterior_mode,
    posterior_weights,
    spread_out,
    with_category,
)
from .signal_space import Responses, SignalSpace, measure_responses
