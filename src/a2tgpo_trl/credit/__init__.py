"""Advantage estimators, one a file: how outcomes and signals become turn advantages and clip ranges."""

from ..functional import COMPARISONS
from .a2tgpo import A2TGPO
from .a2tgpo_stop import A2TGPOStop
from .at2po import AT2PO
from .base import CREDIT_GROUPS, SIGNALS, Estimator, TurnCredit, Turns, check_credit, options_read
from .belief_bonus import BeliefBonus
from .gigpo import GiGPO
from .grpo import GRPO
from .gtpo import GTPO
from .igpo import IGPO
from .mt_grpo import MTGRPO
from .outcome import without_rounding
from .returns import Returns
from .schedule import SCHEDULES, scheduled
from .trace import TRACE
from .turn_ppo import TurnPPO

ESTIMATORS: dict[str, type[Estimator]] = {
    "a2tgpo": A2TGPO,
    "igpo": IGPO,
    "grpo": GRPO,
    "a2tgpo_stop": A2TGPOStop,
    "trace": TRACE,
    "returns": Returns,
    "gtpo": GTPO,
    "mt_grpo": MTGRPO,
    "gigpo": GiGPO,
    "turn_ppo": TurnPPO,
    "at2po": AT2PO,
    "belief_bonus": BeliefBonus,
}
"""By the name that `advantage_estimator` takes."""

__all__ = [
    "A2TGPO",
    "AT2PO",
    "COMPARISONS",
    "CREDIT_GROUPS",
    "ESTIMATORS",
    "GRPO",
    "GTPO",
    "IGPO",
    "MTGRPO",
    "SCHEDULES",
    "SIGNALS",
    "TRACE",
    "A2TGPOStop",
    "BeliefBonus",
    "Estimator",
    "GiGPO",
    "Returns",
    "TurnCredit",
    "TurnPPO",
    "Turns",
    "check_credit",
    "estimator_of",
    "options_read",
    "scheduled",
    "without_rounding",
]


def estimator_of(choice: str | type[Estimator] | Estimator) -> Estimator:
    """
    The estimator that the option `advantage_estimator` chooses.

    Args:
        choice (`str`, a class or an object of one): A name of `ESTIMATORS`, a class of one's own, which is called without
            arguments, or an object of it.

    Raises:
        ValueError: If it is neither.
    """
    named = ESTIMATORS.get(choice, choice) if isinstance(choice, str) else choice
    estimator = named() if isinstance(named, type) and issubclass(named, Estimator) else named
    if not isinstance(estimator, Estimator):
        names = ", ".join(map(repr, ESTIMATORS))
        raise ValueError(
            f"advantage_estimator must be one of {names}, got {choice!r}. For a method of your own give a subclass of "
            "a2tgpo_trl.credit.Estimator, or an object of one."
        )
    return estimator
