"""What a row is: leaves with an example axis, factored or not, and algebra on them.

Everything above is written in the verbs of ``verbs.py``; a new kind of leaf is taught
there alone. Imports ``_typing`` and ``_check``, nothing else of this package.
"""
