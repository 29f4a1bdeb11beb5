"""PanGu Lab: training, compression and grading code behind an interactive course on language models.

Importing this package costs nothing: every module imports what it needs when it is imported itself.
Start reading at ``pangu_lab.lab`` (what a notebook talks to) or ``pangu_lab.cli`` (the command line).
"""

__version__ = "0.1.0"
