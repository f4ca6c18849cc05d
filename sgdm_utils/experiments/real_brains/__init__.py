"""Real people in small public files: what is read, geometry of the brain, houses and faces."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
