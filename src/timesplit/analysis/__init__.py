"""Reads a run folder: joins its records, computes its figures, says what they cannot tell."""
