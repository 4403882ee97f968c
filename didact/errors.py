"""Errors that the user sees as one line."""


class UserError(Exception):
    """The user's input is wrong: the message says where and how to fix it; the command line exits 2."""


class BudgetError(UserError):
    """The budget of calls or tokens is used up."""


class TerminatedError(KeyboardInterrupt):
    """The process received SIGTERM; handled like Ctrl-C."""
