"""Benchmarks for GPUs and TPUs."""
