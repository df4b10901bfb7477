"""A user's mistake, told in one line."""


class UserFault(ValueError):
    """Bad input: what, where, and what is allowed, in one line.

    The command line prints the line and exits with 2; a notebook shows the line instead of a traceback.
    """

    def _render_traceback_(self) -> list[str]:
        # IPython calls this to show an exception: https://ipython.readthedocs.io (custom tracebacks).
        return [f"{type(self).__name__}: {self}"]
