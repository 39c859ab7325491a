"""Folds: statistics of rows that merge in any order, in one pass and O(P) memory."""

from consensus_optax.folds._sign_consensus import sign_consensus

__all__ = ["sign_consensus"]
