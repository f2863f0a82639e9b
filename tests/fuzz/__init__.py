"""A differential fuzzer: random recurrent steps, every engine against a Python loop."""

from quick import compile_fast

compile_fast()  # by the tests done already
