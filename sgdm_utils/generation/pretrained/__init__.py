"""SDXL-Turbo or Stable Diffusion 1.5 in place of the generator trained here."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
