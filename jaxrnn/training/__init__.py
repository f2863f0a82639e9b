"""Training with optax: compiled steps, the host loop, checkpoints, run directories."""

from .batches import make_batch_step as make_batch_step
from .checkpoints import Checkpoints as Checkpoints
from .errors import InputError as InputError
from .experiment import Budget as Budget
from .experiment import Experiment as Experiment
from .fit import fit as fit
from .run import Run as Run
from .sharding import global_batch as global_batch
from .sharding import local_rows as local_rows
from .sharding import shard_state as shard_state
from .state import TrainState as TrainState
from .state import constant as constant
from .state import fresh_state as fresh_state
from .state import make_optimizer as make_optimizer
from .state import start as start
from .state import warmup_cosine as warmup_cosine
from .train_step import make_train_step as make_train_step
