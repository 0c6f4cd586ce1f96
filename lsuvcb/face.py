"""The public names of the package, and nothing else: `lsuvcb` shows them when one is asked for."""

from .engine import InputScaleWarning as InputScaleWarning
from .engine import LSUVError as LSUVError
from .engine import LSUVReport as LSUVReport
from .engine import LSUVWarning as LSUVWarning
from .engine import NoLayersError as NoLayersError
from .engine import NotConvergedWarning as NotConvergedWarning
from .engine import Survey as Survey
from .engine import TrainedModelWarning as TrainedModelWarning
from .engine import delta_orthogonal_ as delta_orthogonal_
from .engine import lsuv_ as lsuv_
from .engine import orthonormal_ as orthonormal_
from .engine import survey as survey
from .loaders import DataLoaders as DataLoaders
from .nets import init_weights as init_weights
from .training import AcceleratorCB as AcceleratorCB
from .training import ActivationStats as ActivationStats
from .training import BaseSchedCB as BaseSchedCB
from .training import BatchSchedCB as BatchSchedCB
from .training import BatchTransformCB as BatchTransformCB
from .training import Callback as Callback
from .training import CancelBatchException as CancelBatchException
from .training import CancelEpochException as CancelEpochException
from .training import CancelFitException as CancelFitException
from .training import CheckpointCB as CheckpointCB
from .training import CheckpointError as CheckpointError
from .training import CheckpointWarning as CheckpointWarning
from .training import DeviceCB as DeviceCB
from .training import EpochSchedCB as EpochSchedCB
from .training import GradientClipCB as GradientClipCB
from .training import HasLearnCB as HasLearnCB
from .training import Hook as Hook
from .training import Hooks as Hooks
from .training import HooksCallback as HooksCallback
from .training import Learner as Learner
from .training import LRFinderCB as LRFinderCB
from .training import LSUVCallback as LSUVCallback
from .training import MetricsCB as MetricsCB
from .training import MixedPrecisionCB as MixedPrecisionCB
from .training import MomentumLearner as MomentumLearner
from .training import ProgressCB as ProgressCB
from .training import RecorderCB as RecorderCB
from .training import SingleBatchCB as SingleBatchCB
from .training import TrainCB as TrainCB
from .training import TrainLearner as TrainLearner

__all__ = [name for name in dir() if name[0] != "_"]
