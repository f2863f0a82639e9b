"""The built-in cells: the arithmetic of one step, one file per cell or family."""

from .convolutional import ConvGRU as ConvGRU
from .convolutional import ConvLSTM as ConvLSTM
from .ctrnn import CTRNN as CTRNN
from .diagonal import DiagonalGRU as DiagonalGRU
from .diagonal import DiagonalLSTM as DiagonalLSTM
from .elman import Elman as Elman
from .gated_delta_net import GatedDeltaNet as GatedDeltaNet
from .gru import GRU as GRU
from .indrnn import IndRNN as IndRNN
from .liquid import LTC as LTC
from .liquid import CfC as CfC
from .lru import LRU as LRU
from .lru import RGLRU as RGLRU
from .lstm import LSTM as LSTM
from .lstm import LSTMState as LSTMState
from .mgu import MGU as MGU
from .minimal import MinGRU as MinGRU
from .minimal import MinLSTM as MinLSTM
from .mlstm import MLSTM as MLSTM
from .mlstm import MLSTMState as MLSTMState
from .orthogonal import OrthogonalRNN as OrthogonalRNN
from .rtu import RTU as RTU
from .rtu import NonlinearRTU as NonlinearRTU
from .slstm import SLSTM as SLSTM
from .slstm import SLSTMState as SLSTMState
from .ssm import S5 as S5
