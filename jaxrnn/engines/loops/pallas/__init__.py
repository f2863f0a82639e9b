"""A whole loop as one kernel: the body of a walk, whatever the cell, with its
matrices resident on chip.
"""
