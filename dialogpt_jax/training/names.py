"""The optimisers and schedules that there are, by name; `optim.py` and `schedules.py` make them.

Nothing here imports jax, for the help of a command shows the names.
"""

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("constant", "linear", "cosine", "noam", "noamwd", "trapezoid")
# Adam's rate beside Muon's: the bundled model's 0.004 to 0.02.
ADAM_SHARE = 0.2


class UnknownOptimizer(ValueError):
    """No optimiser has this name."""


class UnknownSchedule(ValueError):
    """No schedule has this name."""
