"""LSUV itself: knows torch and the standard library, and no trainer."""

from .errors import InputScaleWarning as InputScaleWarning
from .errors import LSUVError as LSUVError
from .errors import LSUVWarning as LSUVWarning
from .errors import NoLayersError as NoLayersError
from .errors import NotConvergedWarning as NotConvergedWarning
from .errors import TrainedModelWarning as TrainedModelWarning
from .lsuv import lsuv_ as lsuv_
from .lsuv import survey as survey
from .solving.orthonormal import delta_orthogonal_ as delta_orthogonal_
from .solving.orthonormal import orthonormal_ as orthonormal_
from .telling.report import LayerReport as LayerReport
from .telling.report import LSUVReport as LSUVReport
from .telling.survey import Survey as Survey
