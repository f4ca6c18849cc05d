"""A forward model: which EEG a picture would evoke, and what EEG then says about pictures."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
