"""Instruments that look inside: where gradients go, how fast they decay, and what truncation costs."""

from .adaptive import AdaptiveTruncation as AdaptiveTruncation
from .adaptive import adaptive_truncation as adaptive_truncation
from .truncation import TruncationBias as TruncationBias
from .truncation import truncation_bias as truncation_bias
