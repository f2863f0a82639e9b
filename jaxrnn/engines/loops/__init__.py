"""The loops that run a body over a chunk of steps, all with one signature."""
