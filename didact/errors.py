"""What is told to the user in one line."""


class UserError(Exception):
    """The user's input is wrong: the message names the place and the mend; the command line exits 2."""


class BudgetError(UserError):
    """The calls or tokens that were allowed are used up."""


class TerminatedError(KeyboardInterrupt):
    """The process was asked to end (SIGTERM); handled as Ctrl-C is."""
