from .maps import outline_features, silhouettes, structure_from_picture, structure_map
from .pictures import StimulusSet, attribute_matrix, make_stimuli
from .stored import StoredStimuli, open_stimuli
