"""Alljoined-1.6M: EDF blocks and flat epochs."""
