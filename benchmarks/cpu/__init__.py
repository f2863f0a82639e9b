"""Benchmarks that run on any machine, most of their published figures on CPUs."""
