"""The one training loop and what it rests on: schedules, checkpoints, progress."""

from didact.learn.fit import Hook, Step, Term, every, fit

__all__ = ["Hook", "Step", "Term", "every", "fit"]
