"""The loops that run a body over time: one signature each."""
