from .autoencoder import PictureVAE
from .checkpoints import TrainingState
from .conditioning import ConditionEmbedder, doubtful_category, fold_maps, shrink, trust
from .decoder import EEGDecoder
from .guide import LatentClassifier, category_direction, guided_velocity
from .networks import make_controlnet, make_unet, predict, resolutions, velocity
from .pipeline import SGDMPipeline, open_generator, open_pipeline, write_model_card
from .pretrained.generator import PretrainedGenerator
from .pretrained.stored import PretrainedParts, PretrainedPipeline, find_parts, save_generator
from .store import PictureStore
