"""The step of a recurrence as equations: its jaxpr, what depends on what, and what
is linear in what.
"""
