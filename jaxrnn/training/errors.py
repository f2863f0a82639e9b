"""What a person who uses the programs can mend: one sentence, no traceback."""


class BadInput(ValueError):
    """Bad arguments, data or run directory; the message is one line that says what was expected, what came, how to mend it."""
