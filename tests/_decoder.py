"""The smallest trainings of the decoder suites."""

from __future__ import annotations

from benchmarks.replication.lm.fit import Tuning
from benchmarks.replication.lm.pretrain import TextPretraining

PRETRAINING = TextPretraining(steps=3, soft_steps=2, width=16, layers=1, heads=2, inner=32, batch=4)
TUNING = Tuning(rank=4, first=2, steps=3, batch=4)
