"""Measurements, each by one command; their results are kept as JSON in
``benchmarks/results``.
"""
