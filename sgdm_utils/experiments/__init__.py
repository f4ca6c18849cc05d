"""What only an experiment needs; its notebooks import the module that they are about."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
