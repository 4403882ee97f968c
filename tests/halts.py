"""Runs that are stopped and begun again: `from halts import Halt, goes_on`."""

import pytest

from didact.learn.fit import Hook


class Halt(Hook):
    """Ends the process after so many steps, as an interrupt does; 0 never does."""

    def __init__(self, at):
        self.left = at

    def after(self, step):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def goes_on(teach, fit, at, folder):
    """Whether `teach(fit=, hooks=)`, stopped after `at` steps and begun again, ends as one left alone."""
    whole = teach(fit=fit, hooks=[Halt(0)])
    kept = fit.replace(folder=str(folder))
    with pytest.raises(KeyboardInterrupt):
        teach(fit=kept, hooks=[Halt(at)])
    again = teach(fit=kept, hooks=[Halt(0)])
    return again.fingerprint() == whole.fingerprint()
