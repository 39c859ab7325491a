"""How rows are made: gradients of many examples, not multiplied out.

What reads a jaxpr lives here, and nothing that reduces. Imports ``_rows`` and below.
"""
