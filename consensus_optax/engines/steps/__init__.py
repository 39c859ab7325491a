"""Rows of several steps: what is kept of each batch until the last one is there."""
