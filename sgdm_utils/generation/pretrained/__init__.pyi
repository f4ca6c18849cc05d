from .generator import PretrainedGenerator
from .stored import PretrainedParts, PretrainedPipeline, find_parts, save_generator
