"""What the EEG says: encoder, CLIP, structure VAE, and what their trainings share."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
