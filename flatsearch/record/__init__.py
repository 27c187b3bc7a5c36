"""What is stored of a study and its trials: the only writer and reader."""

from flatsearch.record.constraints import read_constraints, write_constraints
from flatsearch.record.decisions import Decision, write_decision
from flatsearch.record.networks import Network, least_accuracy, networks_of, read_trials
from flatsearch.record.promotion import Promotion
from flatsearch.record.study import (
    HASHED,
    FinalTest,
    LeastAccuracy,
    StudyRecord,
    name_objectives,
    write_study,
)
from flatsearch.record.trial import FINISHED, TrialRecord
from flatsearch.record.writing import clear_steps, write_step, write_trial

__all__ = [
    "FINISHED",
    "HASHED",
    "Decision",
    "FinalTest",
    "LeastAccuracy",
    "Network",
    "Promotion",
    "StudyRecord",
    "TrialRecord",
    "clear_steps",
    "least_accuracy",
    "name_objectives",
    "networks_of",
    "read_constraints",
    "read_trials",
    "write_constraints",
    "write_decision",
    "write_step",
    "write_study",
    "write_trial",
]
