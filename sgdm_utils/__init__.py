"""Helpers of the SGDM study: how much of a seen picture can be rebuilt from EEG?

The notebooks hold the scientific decisions; this package holds what is used more than once. It
imports nothing heavy here; every room is imported by name (``from sgdm_utils import metrics``).
"""

__version__ = "0.1.0"
