"""What can go wrong with the edge."""


class EdgeUnreachableError(Exception):
    """The edge does not run, does not answer in time, or refuses a command."""


class EdgeStartError(Exception):
    """The edge could not be started, reloaded or stopped; the message carries HAProxy's own complaint."""
