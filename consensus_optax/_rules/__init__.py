"""The pure mathematics of reducers: kinds of rule, and what several rules share.

Works on inner products, columns and statistics; never knows how rows are obtained.
Imports ``_rows`` and below.
"""
