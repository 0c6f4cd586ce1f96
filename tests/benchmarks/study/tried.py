"""Part 7: what else was tried for the default call, on the cells of part 2, and how near each came."""

from __future__ import annotations

from . import harm
from .results import Results
from .starts import TRIED


def units(quick: bool) -> list[tuple[str, str, str]]:
    """Start, net and optimiser: in the whole form."""
    return (
        [] if quick else [(start, net, optimiser) for start in TRIED for net in harm.NETS for optimiser in harm.RATES]
    )


def run(results: Results, start: str, net: str, optimiser: str, quick: bool) -> None:
    """One start in one cell, beside PyTorch's; again with fresh seeds if it looks worse."""
    harm.judge(results, net, optimiser, ("pytorch", start))
