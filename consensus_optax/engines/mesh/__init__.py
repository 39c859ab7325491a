"""Rows on many devices: where they lie, what is exchanged, and a source of them."""
