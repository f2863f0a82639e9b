"""Kernels that run a whole loop, generated from the loop's body, in Pallas."""
