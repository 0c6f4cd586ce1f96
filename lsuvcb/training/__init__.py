"""The training loop: a Learner, its callbacks, and LSUV as one of them."""

from .activation_stats import ActivationStats as ActivationStats
from .callbacks import BatchTransformCB as BatchTransformCB
from .callbacks import DeviceCB as DeviceCB
from .callbacks import SingleBatchCB as SingleBatchCB
from .callbacks import TrainCB as TrainCB
from .events import Callback as Callback
from .events import CancelBatchException as CancelBatchException
from .events import CancelEpochException as CancelEpochException
from .events import CancelFitException as CancelFitException
from .hooks import Hook as Hook
from .hooks import Hooks as Hooks
from .hooks import HooksCallback as HooksCallback
from .learner import Learner as Learner
from .learner import MomentumLearner as MomentumLearner
from .learner import TrainLearner as TrainLearner
from .lsuv_callback import LSUVCallback as LSUVCallback
from .metrics import MetricsCB as MetricsCB
from .progress import ProgressCB as ProgressCB
