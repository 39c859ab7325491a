"""The one interpreter: a rule, a source of rows, an update; and the face optax sees.

Knows kinds of rule and no rule by name, and no source beyond its protocol and rows in
memory. Imports ``_rules``, ``_rows`` and below, not ``_gradients``.
"""
