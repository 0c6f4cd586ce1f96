"""The training loop: a Learner, its callbacks, and LSUV as one of them.

In this order callbacks run, whatever the order in which they are listed:

    -30  ResumeCB, which `fit(resume=)` adds
    -20  TrainCB
    -10  DeviceCB
     -9  BatchTransformCB
     -8  AcceleratorCB
     -5  MixedPrecisionCB
      0  HasLearnCB, and any callback of your own that does not say
      5  GradientClipCB
     20  LSUVCallback
     30  HooksCallback, ActivationStats
     35  RecorderCB
     40  LRFinderCB
     50  MetricsCB
     60  ProgressCB
     70  BatchSchedCB, EpochSchedCB
     90  CheckpointCB
    100  SingleBatchCB
"""

from .accelerator import AcceleratorCB as AcceleratorCB
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
from .lr_find import LRFinderCB as LRFinderCB
from .lsuv_callback import LSUVCallback as LSUVCallback
from .metrics import MetricsCB as MetricsCB
from .precision import GradientClipCB as GradientClipCB
from .precision import MixedPrecisionCB as MixedPrecisionCB
from .progress import ProgressCB as ProgressCB
from .saving.checkpoint import CheckpointCB as CheckpointCB
from .saving.files import CheckpointError as CheckpointError
from .saving.files import CheckpointWarning as CheckpointWarning
from .schedule import BaseSchedCB as BaseSchedCB
from .schedule import BatchSchedCB as BatchSchedCB
from .schedule import EpochSchedCB as EpochSchedCB
from .schedule import HasLearnCB as HasLearnCB
from .schedule import RecorderCB as RecorderCB
from .train_learner import MomentumLearner as MomentumLearner
from .train_learner import TrainLearner as TrainLearner
