from .design import RatingWidget, Session, make_design, read_ratings
from .scores import (
    CHANCE,
    catch_trials,
    compare_conditions,
    family,
    score_conditions,
    simulated_rater,
)
