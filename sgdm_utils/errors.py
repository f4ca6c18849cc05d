"""What users are told: errors that several rooms raise."""

from __future__ import annotations


class DatasetError(ValueError):
    """A recording or its events cannot be used as they are: the message says where."""


class ChannelError(ValueError):
    """A channel cannot be used as it is: the message names it and says what to do."""


class WeightsNotAvailable(RuntimeError):
    """Pretrained weights of a metric are not on this machine, so its row holds no number."""
