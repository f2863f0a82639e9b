"""Measure gradient flow: gradient norms by lag, decay rates, the cost of truncation."""

from . import plots as plots
from .adaptive import AdaptiveTruncation as AdaptiveTruncation
from .adaptive import adaptive_truncation as adaptive_truncation
from .decay import DecayFit as DecayFit
from .decay import fit_decay as fit_decay
from .decay import memory_horizon as memory_horizon
from .gates import GateStatistics as GateStatistics
from .gates import gate_statistics as gate_statistics
from .jacobians import JacobianProducts as JacobianProducts
from .jacobians import jacobian_products as jacobian_products
from .jacobians import jacobians as jacobians
from .jacobians import log_singular_values as log_singular_values
from .lags import GradientLags as GradientLags
from .lags import gradient_lags as gradient_lags
from .lags import gradient_map as gradient_map
from .lyapunov import LyapunovSpectrum as LyapunovSpectrum
from .lyapunov import LyapunovState as LyapunovState
from .lyapunov import lyapunov_spectrum as lyapunov_spectrum
from .online import OnlineError as OnlineError
from .online import online_error as online_error
from .parameter_lags import ParameterLags as ParameterLags
from .parameter_lags import parameter_lags as parameter_lags
from .taps import gate_values as gate_values
from .taps import tapped as tapped
from .truncation import TruncationBias as TruncationBias
from .truncation import truncation_bias as truncation_bias
