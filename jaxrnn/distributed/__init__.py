"""Networks over several devices."""

from .wavefront import stacked_params as stacked_params
from .wavefront import wavefront as wavefront
