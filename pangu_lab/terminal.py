"""What the commands share of the terminal: two consoles, and text that is shown as it is."""

from pathlib import Path

from rich.console import Console

out, err = Console(highlight=False), Console(stderr=True, highlight=False)


def plain(text: str) -> str:
    """Text without meaning for rich, whose markup stands in square brackets."""
    return text.replace("[", r"\[")


def shown(path: Path) -> str:
    """A path from here, where it lies below."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
