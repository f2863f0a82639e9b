"""What cells, layers and engines agree on, and the checks and small mechanisms that
all of them use.
"""
