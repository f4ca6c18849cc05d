"""People whose brains are known: a forward model of EEG, and its truth."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
