"""Unrolls of cells and layers over sequences."""

from .api import fill_context as fill_context
from .api import truncated_unroll as truncated_unroll
from .api import unroll as unroll
from .api import unroll_validated as unroll_validated
from .api import validate as validate
from .lengths import mask_from_lengths as mask_from_lengths
from .observing import current_observer as current_observer
from .observing import observed_by as observed_by
from .observing import run_network as run_network
from .parts import check_supported as check_supported
from .parts import unroll_part as unroll_part
from .parts import unroll_unchecked as unroll_unchecked
from .step_checks import check_all_carries as check_all_carries
from .step_checks import check_step as check_step
from .step_checks import initial_carry_of as initial_carry_of
from .time_placement import placed as placed
from .truncation_scope import check_truncated as check_truncated
