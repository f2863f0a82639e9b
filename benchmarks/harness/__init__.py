"""What all benchmarks share: timing, records, the machine."""
