"""What the library did before its redesign, kept in ``data/`` to compare with.

The README beside this file says what is here and how it was made.
"""
