"""THINGS-EEG2 in every form in which it is distributed."""
