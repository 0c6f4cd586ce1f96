"""LSUV itself: knows torch and the standard library, and no trainer."""

from .errors import InputScaleWarning as InputScaleWarning
from .errors import LSUVError as LSUVError
from .errors import LSUVWarning as LSUVWarning
from .errors import NoLayersError as NoLayersError
from .errors import NotConvergedWarning as NotConvergedWarning
from .errors import TrainedModelWarning as TrainedModelWarning
from .init import init_weights as init_weights
from .init import orthonormal_ as orthonormal_
from .lsuv import lsuv_ as lsuv_
from .lsuv import survey as survey
from .report import LayerReport as LayerReport
from .report import LSUVReport as LSUVReport
from .report import Survey as Survey
