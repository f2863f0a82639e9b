"""Splitting a batch or time over devices: what is counted, measured and predicted."""
