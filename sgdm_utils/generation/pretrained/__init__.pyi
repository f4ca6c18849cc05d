from .generator import PretrainedGenerator
