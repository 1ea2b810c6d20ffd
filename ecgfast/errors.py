"""Errors that tell a user what was wrong with an input."""


class EcgfastError(ValueError):
    """Bad input outside the ops: a file, a folder, a lead name, a configuration.

    The command line prints its one-line message and exits with code 2.
    """
