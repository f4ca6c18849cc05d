"""Data sets and weights: the catalogue, fetching with checksums, resuming."""
