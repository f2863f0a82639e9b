"""Scores and pictures of what a task has learned."""
