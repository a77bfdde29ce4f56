"""Belief in the true answer (equation 1): what to probe, and how to score it at the cost of the probes."""

from .probes import (
    BeliefPlan,
    Probe,
    ProbedRow,
    Query,
    belief_table,
    join_aliases,
    make_probe,
    mean_logps,
    packed_length,
    probed_rows,
    queries,
    scored_answers,
    share_contexts,
    shared_beliefs,
)
from .scoring import BeliefScorer
from .shared_forward import SharedForward

__all__ = [
    "BeliefPlan",
    "BeliefScorer",
    "Probe",
    "ProbedRow",
    "Query",
    "SharedForward",
    "belief_table",
    "join_aliases",
    "make_probe",
    "mean_logps",
    "packed_length",
    "probed_rows",
    "queries",
    "scored_answers",
    "share_contexts",
    "shared_beliefs",
]
