from .outlines import outline_features
from .pictures import (
    StimulusSet,
    attribute_matrix,
    make_stimuli,
    structure_from_picture,
    structure_map,
)
