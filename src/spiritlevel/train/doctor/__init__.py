"""The run doctor: from a run's metrics to likely causes, with evidence and remedy. Signs register when imported."""

from spiritlevel.train.doctor import optimisation, preference, rollouts
from spiritlevel.train.doctor.curve import Curve, Run
from spiritlevel.train.doctor.read import read_rows, read_run
from spiritlevel.train.doctor.sign import SIGNS, Diagnosis, Examination, Sign, examine

__all__ = ["SIGNS", "Curve", "Diagnosis", "Examination", "Run", "Sign", "examine", "read_rows", "read_run"]

del optimisation, preference, rollouts
