"""Decoding: sequences from a model by sampling and by beam search."""

from .beam_search import Beams as Beams
from .beam_search import beam_search as beam_search
from .sampling import Generated as Generated
from .sampling import generate as generate
