"""Tangrams of KiloGram with EEG: recordings, figures, pictures."""
