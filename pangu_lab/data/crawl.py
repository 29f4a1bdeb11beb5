"""A small real crawl that needs no network: what the installed Python packages say in words.

That is their documentation and license files, ``installed_documents``, and what their source files say before the
first statement, ``source_openings``: license notices by the thousand, hardly two of them alike to the letter.
"""

import re
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import numpy as np

from pangu_lab.data.corpus import Skipped, decoded

NAMES = ("license", "licence", "copying", "notice", "authors", "readme", "changelog", "metadata")
ENDINGS = (".md", ".rst", ".txt")
OPENING = 4000  # bytes of a source file that are read
LEAST = 20  # words; an opening of fewer is not worth a document

_COMMENTS = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\n)*")
_DOCSTRING = re.compile(r"[rRuU]?(\"{3}|'{3})(.*?)(?:\1|\Z)", re.DOTALL)


def installed_documents(most: int, seed: int = 0) -> list[tuple[str, Path]]:
    """At most ``most`` files, drawn at random: the name inside of the package tree, and the path on this machine.

    The list is what the packages say they installed; a file that is gone is met later, while reading.
    """
    found = _installed(_is_document)
    names = np.array(list(found), dtype=object)
    if len(names) > most:
        rng = np.random.Generator(np.random.PCG64(seed))
        names = names[np.sort(rng.permutation(len(names))[:most])]
    return [(name, found[name]) for name in names]


def source_openings(most: int, skipped: Skipped, seed: int = 0) -> Iterator[dict[str, str]]:
    """At most ``most`` documents ``{"text", "source"}``: the ``opening`` of source files, drawn at random.

    Files whose opening has fewer than ``LEAST`` words are passed over; what is no text goes into ``skipped``.
    """
    found = _installed(lambda name: name.endswith(".py"))
    names = list(found)
    count = 0
    for place in np.random.Generator(np.random.PCG64(seed)).permutation(len(names)):
        if count == most:
            return
        name, reason = names[place], ""
        try:
            with open(found[name], "rb") as file:
                data = file.read(OPENING)
            if len(data) == OPENING:  # cut behind a line, never inside of a character
                data = data[: data.rfind(b"\n") + 1]
            text, reason = decoded(data)
        except OSError as error:
            text, reason = "", f"cannot be read: {error.strerror}"
        if reason:
            skipped.add(reason, name)
        elif len((text := opening(text)).split()) >= LEAST:
            count += 1
            yield {"text": text, "source": name}


def opening(source: str) -> str:
    """What a Python source file says before its first statement: the comment it begins with, and its docstring."""
    head = _COMMENTS.match(source)
    end = head.end() if head else 0
    lines = [line.strip() for line in source[:end].splitlines()]
    comment = "\n".join(line.lstrip("#").strip() for line in lines if not line.startswith(("#!", "# -*-")))
    docstring = _DOCSTRING.match(source, end)
    return "\n\n".join(part for part in (comment.strip(), docstring[2].strip() if docstring else "") if part)


def _is_document(name: str) -> bool:
    wanted = name.startswith(NAMES) or name.endswith(ENDINGS)
    return wanted and not name.endswith((".py", ".pyc", ".pyi", ".json"))


def _installed(wanted: Callable[[str], bool]) -> dict[str, Path]:
    """Files of the packages whose lower-case name is ``wanted``, sorted by their name inside of the package tree."""
    found = {}
    for package in metadata.distributions():
        for file in package.files or ():
            path = str(file).replace("\\", "/")
            if wanted(file.name.lower()) and not path.startswith(("..", "/")):
                found[path] = Path(str(package.locate_file(file)))
    return dict(sorted(found.items()))
