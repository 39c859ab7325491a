"""Rows that are reduced inside of the backward pass, and a source of them."""
