"""What DeepSpeed's ZeRO has made of a parameter, told by the attributes that it gives each; deepspeed is not imported.

Its stages 1 and 2 leave the values where they are, and keep a copy in the optimizer's partitions, which a step writes back over
them (`_hp_mapping`). Stage 3 takes the values away: `zero.Init` leaves an empty tensor and a note of the size (`ds_numel`), and
`deepspeed.initialize` an optimizer with a copy as well (`_z3_optimizer`); hooks gather the values for each forward.
"""

from __future__ import annotations

from torch import Tensor


def has_a_copy(parameter: Tensor) -> bool:
    """Would the optimizer's first step write over what is written here?"""
    return hasattr(parameter, "_hp_mapping") or hasattr(parameter, "_z3_optimizer")


def is_taken_away(parameter: Tensor) -> bool:
    """Is it empty, with no hooks that would gather its values for a forward?"""
    away = getattr(parameter, "ds_numel", 0) > 0 and parameter.numel() == 0
    return away and not hasattr(parameter, "_z3_optimizer")
