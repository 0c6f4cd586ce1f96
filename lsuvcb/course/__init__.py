"""The names that the fast.ai course's lessons use: `from lsuvcb.course import *` stands in for their own import lines.

A face: the code lives in its rooms, and what only the lessons need in the files of this folder. Signatures and meaning are
the lessons'; where ours is safer (loops that end, no callback that silently does nothing) it stays so. torcheval is imported
here, quietly, so that a lesson's own `from torcheval.metrics import MulticlassAccuracy` prints no warnings.
"""

from ..loaders import DataLoaders as DataLoaders
from ..loaders import collate_dict as collate_dict
from ..loaders import inplace as inplace
from ..nets import BatchNorm as BatchNorm
from ..nets import ConvLayer as ConvLayer
from ..nets import GeneralRelu as GeneralRelu
from ..nets import LayerNorm as LayerNorm
from ..nets import conv as conv
from ..nets import gain as gain
from ..nets import get_model as get_model
from ..nets import init_weights as init_weights
from ..plot import get_grid as get_grid
from ..plot import plot_func as plot_func
from ..plot import show_image as show_image
from ..plot import show_images as show_images
from ..plot import subplots as subplots
from ..training import ActivationStats as ActivationStats
from ..training import BaseSchedCB as BaseSchedCB
from ..training import BatchSchedCB as BatchSchedCB
from ..training import BatchTransformCB as BatchTransformCB
from ..training import Callback as Callback
from ..training import CancelBatchException as CancelBatchException
from ..training import CancelEpochException as CancelEpochException
from ..training import CancelFitException as CancelFitException
from ..training import DeviceCB as DeviceCB
from ..training import EpochSchedCB as EpochSchedCB
from ..training import HasLearnCB as HasLearnCB
from ..training import Hook as Hook
from ..training import Hooks as Hooks
from ..training import HooksCallback as HooksCallback
from ..training import Learner as Learner
from ..training import LRFinderCB as LRFinderCB
from ..training import LSUVCallback as LSUVCallback
from ..training import MetricsCB as MetricsCB
from ..training import MomentumLearner as MomentumLearner
from ..training import ProgressCB as ProgressCB
from ..training import RecorderCB as RecorderCB
from ..training import SingleBatchCB as SingleBatchCB
from ..training import TrainCB as TrainCB
from ..training import TrainLearner as TrainLearner
from ..training.devices import collate_device as collate_device
from ..training.devices import default_device as _default_device
from ..training.devices import to_cpu as to_cpu
from ..training.devices import to_device as to_device
from ..training.lr_find import lr_find as lr_find
from ..training.metrics import torcheval_metrics as _torcheval_metrics
from .activations import append_stats as append_stats
from .activations import get_hist as get_hist
from .activations import get_min as get_min
from .kaiming import init_cnn as init_cnn
from .kaiming import kaiming2 as kaiming2
from .kaiming import normalize as normalize
from .kaiming import normalize_to as normalize_to
from .kaiming import stats as stats
from .kaiming import view_tfm as view_tfm
from .loop import get_batch as get_batch
from .loop import run_cbs as run_cbs
from .loop import with_cbs as with_cbs
from .lsuv import append_stat as append_stat
from .lsuv import find_modules as find_modules
from .lsuv import is_lin_layer as is_lin_layer
from .lsuv import lsuv_init as lsuv_init
from .lsuv import lsuv_module as lsuv_module
from .session import clean_ipython_hist as clean_ipython_hist
from .session import clean_mem as clean_mem
from .session import clean_tb as clean_tb
from .session import set_seed as set_seed

_torcheval_metrics()

find_mods, lsuv_append_stat = find_modules, append_stat
def_device = _default_device().type

__all__ = [
    name for name in dir() if name[0] != "_" and name not in ("activations", "kaiming", "loop", "lsuv", "session")
]
