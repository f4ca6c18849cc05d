"""How a study runs and what it leaves: paths, configuration, artifacts, the runner."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
