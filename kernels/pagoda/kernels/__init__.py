"""Kernels behind one interface: `reference` (plain torch) is the truth that the others are tested against."""
