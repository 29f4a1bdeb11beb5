"""The leak gate: no line of a solution may stand anywhere in the notebook that students get.

A line is compared as its tokens, so spacing and quotes cannot hide it; code is
compared as Python rewrites it, too, so comments and parentheses cannot. Read ``find_leaks`` first.
"""

import ast
import base64
import binascii
import html
import re
import struct
import textwrap
import unicodedata
import urllib.parse
import warnings
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from nbformat import NotebookNode

from pangu_lab.grading.notebook_format import BEGIN, END, without_magics

SHORTEST = 12  # non-space characters; shorter lines ("return x") say nothing

_TOKEN = re.compile(r"\w+|[^\w\s]")
_TAG = re.compile(r"<[^<>]*>")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{16,}")
_FENCE = re.compile(r"```[^\n]*\n(.*?)```", re.DOTALL)
_EDGE = "\x1f"


class Leak(NamedTuple):
    """A line of a solution, and the cell of the students' notebook that shows it."""

    cell: str
    part: str
    line: str


def solution_lines(notebook: NotebookNode) -> dict[str, str]:
    """Every line and simple statement inside the solution regions: its tokens, and the line as written."""
    found: dict[str, str] = {}
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        inside, numbers, lines = False, set(), cell.source.split("\n")
        for number, line in enumerate(lines, start=1):
            if line.strip() in (BEGIN, END):
                inside = line.strip() == BEGIN
            elif inside:
                numbers.add(number)
                _add(found, line, line)
                _add(found, line.split("#")[0], line)
        for statement in _statements(cell.source):
            if statement.lineno in numbers:
                # The body of a compound statement follows as statements of its own; its head is one line.
                text = ast.unparse(statement)
                head = text.split("\n")[0] if hasattr(statement, "body") else text
                _add(found, head, head)
    return found


def _add(found: dict[str, str], text: str, line: str) -> None:
    if len("".join(text.split())) >= SHORTEST:
        found.setdefault(_tokens(text), line.strip())


def _statements(source: str) -> list[Any]:
    tree = _parsed(source)
    return [node for node in ast.walk(tree) if isinstance(node, ast.stmt)] if tree else []


def _parsed(source: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():  # much of what is tried here was never meant to be Python
            warnings.simplefilter("ignore")
            return ast.parse(textwrap.dedent(without_magics(source)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def find_leaks(student: NotebookNode, forbidden: dict[str, str], allowed: Iterable[str] = ()) -> Iterator[Leak]:
    """The leaks in a students' notebook; the sources of the cells ``allowed`` are not looked at."""
    allowed = set(allowed)
    for cell in student.cells:
        for part, text in _strings({key: cell[key] for key in sorted(cell)}):
            if part == "source" and cell.id in allowed:
                continue
            for line in _found(text, part, forbidden):
                yield Leak(cell.id, part, line)
    for part, text in _strings({"metadata": student.metadata}):
        for line in _found(text, part, forbidden):
            yield Leak("(notebook)", part, line)


def _found(text: str, part: str, forbidden: dict[str, str]) -> Iterator[str]:
    views = [_tokens(view) for view in _views(text, part)]
    for key, line in forbidden.items():
        if any(key in view for view in views):
            yield line


def _strings(value: Any, part: str = "") -> Iterator[tuple[str, str]]:
    """Every string of a JSON value, keys included, with the path that leads to it."""
    if isinstance(value, str):
        yield part, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield part, str(key)
            yield from _strings(item, f"{part}.{key}" if part else str(key))
    elif isinstance(value, list):
        if value and all(isinstance(item, str) for item in value):
            yield part, "".join(value)
        for item in value:
            yield from _strings(item, part)


def _tokens(text: str) -> str:
    """Text as its words and signs, each between edges; spacing, kind of quotes, invisible signs are gone."""
    text = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    return _EDGE + _EDGE.join(_TOKEN.findall(text.replace('"', "'"))) + _EDGE


def _views(text: str, part: str = "", depth: int = 0) -> Iterator[str]:
    """The text itself and everything that can be read out of it: markup, code, encodings, images."""
    yield text
    if "<" in text or "&" in text:
        yield html.unescape(_TAG.sub("", text))
        yield html.unescape(_TAG.sub(" ", text))
    if "%" in text:
        yield urllib.parse.unquote(text)
    if "\\" in text:
        yield text.replace("\\n", "\n").replace("\\t", "\t").replace('\\"', '"').replace("\\'", "'")
    for code in [text, *_FENCE.findall(text)]:
        yield from _code_views(code, depth)
    if depth < 2:
        if "image/" in part or "application/" in part:
            text = "".join(text.split())  # MIME breaks its lines
        for run in _BASE64.findall(text):
            for content in _decoded(run):
                for inner in _bytes_views(content):
                    yield from _views(inner, depth=depth + 1)


def _code_views(code: str, depth: int) -> Iterator[str]:
    tree = _parsed(code)
    if tree is None:
        return
    yield ast.unparse(tree)
    for node in ast.walk(tree):
        if depth < 2 and isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from _views(node.value, depth=depth + 1)


def _decoded(run: str) -> Iterator[bytes]:
    """What a run of base64 letters decodes to; it may have begun up to three letters earlier or later."""
    letters = run.replace("-", "+").replace("_", "/")
    starts = range(4) if len(letters) < 20_000 else range(1)
    for start in starts:
        part = letters[start:]
        part = part[: len(part) - 1] if len(part) % 4 == 1 else part
        try:
            yield base64.b64decode(part + "=" * (-len(part) % 4))
        except binascii.Error:
            continue


def _bytes_views(content: bytes) -> Iterator[str]:
    yield content.decode("utf-8", errors="ignore")
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        yield from _png_texts(content)
    if content[:1] == b"\x78" or content[:2] == b"\x1f\x8b":  # zlib, gzip
        yield _inflate(content)


def _png_texts(content: bytes) -> Iterator[str]:
    """The text chunks of a PNG file (tEXt, zTXt, iTXt), inflated where they are compressed."""
    position = 8
    while position + 8 <= len(content):
        length, kind = struct.unpack(">I4s", content[position : position + 8])
        body = content[position + 8 : position + 8 + length]
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            yield body.decode("utf-8", errors="ignore")
            for start in [i for i in range(len(body)) if body[i] == 0x78]:
                yield _inflate(body[start:])
        position += 12 + length


def _inflate(content: bytes) -> str:
    try:
        return zlib.decompressobj(47).decompress(content, 1_000_000).decode("utf-8", errors="ignore")
    except zlib.error:
        return ""
