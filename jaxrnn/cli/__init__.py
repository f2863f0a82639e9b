"""The command line interface, which parses arguments and calls the library."""

from .entry import main as main
