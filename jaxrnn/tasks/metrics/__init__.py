"""Metrics and plots of trained tasks."""
