from .autoencoder import PictureVAE
from .averages import blended_colours, sharpened_maps
from .checkpoints import TrainingState
from .conditioning import (
    ConditionEmbedder,
    colour_layout,
    figure_and_ground,
    fold_maps,
    guided_colours,
    shrink,
    trust,
    two_colour_layout,
)
from .decoder import EEGDecoder
from .guide import LatentClassifier, category_direction, guided_velocity
from .model_card import write_model_card
from .networks import make_controlnet, make_unet, predict, resolutions, velocity
from .pipeline import SGDMPipeline, open_generator, open_pipeline
from .posterior import EEGPosterior
from .pretrained.generator import PretrainedGenerator
from .pretrained.stored import (
    PretrainedParts,
    PretrainedPipeline,
    find_parts,
    open_parts,
    save_generator,
    save_parts,
)
from .store import PictureStore
