"""Would a person pick the right picture? Design, widget and scores of the test."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
