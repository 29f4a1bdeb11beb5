"""The one base class of every mistake we foresee.

Whoever raises it writes one sentence: what was wrong, where, and what to do. The command line prints
that sentence without a traceback; anything else that escapes is a defect of ours.
"""


class PanguLabError(Exception):
    """A foreseeable mistake, told in one sentence that says what to do."""
