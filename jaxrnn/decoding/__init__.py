"""Decoding: sequences from a model by sampling, beam search and closed loops."""

from .beam_search import Beams as Beams
from .beam_search import beam_search as beam_search
from .closed_loop import RolledOut as RolledOut
from .closed_loop import rollout as rollout
from .sampling import Generated as Generated
from .sampling import generate as generate
