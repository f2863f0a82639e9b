"""Baselines that the tasks are compared with."""
