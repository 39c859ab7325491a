"""Ordinary training loops, and what of each is changed to reduce rows.

``python -m examples.linen`` runs one, ``CONSENSUS_OPTAX_SMOKE=1`` for fewer steps;
``examples/plain/linen.py`` is the loop as it was.
"""
