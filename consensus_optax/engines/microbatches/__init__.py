"""Rows that are computed a few at a time, and a source of them."""
