"""One differentiated recurrence: its primitives, their passes over time, and the
rules by which a pass is scheduled.
"""
