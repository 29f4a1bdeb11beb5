"""A small real crawl that needs no network: documentation and license files of the installed Python packages."""

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np

NAMES = ("license", "licence", "copying", "notice", "authors", "readme", "changelog", "metadata")
ENDINGS = (".md", ".rst", ".txt")


def installed_documents(most: int, seed: int = 0) -> list[tuple[str, Path]]:
    """At most ``most`` files, drawn at random: the name inside of the package tree, and the path on this machine.

    The list is what the packages say they installed; a file that is gone is met later, while reading.
    """
    found = dict(sorted(_documents()))
    names = np.array(list(found), dtype=object)
    if len(names) > most:
        rng = np.random.Generator(np.random.PCG64(seed))
        names = names[np.sort(rng.permutation(len(names))[:most])]
    return [(name, found[name]) for name in names]


def _documents() -> Iterator[tuple[str, Path]]:
    for package in metadata.distributions():
        for file in package.files or ():
            name = file.name.lower()
            if (name.startswith(NAMES) or name.endswith(ENDINGS)) and not name.endswith(
                (".py", ".pyc", ".pyi", ".json")
            ):
                path = str(file).replace("\\", "/")
                if not path.startswith(("..", "/")):
                    yield path, Path(str(package.locate_file(file)))
