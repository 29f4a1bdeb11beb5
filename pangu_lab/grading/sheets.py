"""CSV as spreadsheets read and write it: cells that cannot become formulas, and back again."""

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pangu_lab.errors import PanguLabError

_STARTS = tuple("=+-@＝＋－＠")
_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?")


def cell(value: Any) -> Any:
    """A value for a CSV: text that a spreadsheet would take for a formula gets an apostrophe in front."""
    if isinstance(value, str):
        value = "".join(" " if ord(sign) < 32 else sign for sign in value).encode("utf-8", "replace").decode()
        return f"'{value}" if value.lstrip()[:1] in _STARTS and value.strip() else value
    return value


def bare(value: str) -> str:
    """The text that ``cell`` was given, as far as it can be told."""
    return value[1:] if value[:1] == "'" and value[1:].lstrip()[:1] in _STARTS else value


def table(rows: Iterable[Iterable[Any]]) -> str:
    """Rows as CSV text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([cell(value) for value in row] for row in rows)
    return text.getvalue()


def decoded(data: bytes) -> tuple[str, str]:
    """The text of a CSV file and the encoding that gives back its bytes.

    UTF-8, with or without a byte order mark, or UTF-16 as some spreadsheets save it; otherwise Windows' own.
    """
    for encoding in ("utf-16",) if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8", "cp1252", "latin-1"):
        try:
            text = data.decode(encoding if encoding != "utf-16" else _utf16(data))
        except UnicodeDecodeError:
            continue
        return text, encoding if encoding != "utf-16" else _utf16(data)
    raise PanguLabError("the file is no text in a known encoding; save it as CSV in UTF-8")


def _utf16(data: bytes) -> str:
    return "utf-16-le" if data[:2] == b"\xff\xfe" else "utf-16-be"  # the mark itself stays in the text


def delimiter(text: str) -> str:
    """The sign between cells: the one of ``, ; tab`` that the first line has most often outside of quotes."""
    first = re.sub(r'"[^"]*"', "", text.lstrip("\ufeff").split("\n", 1)[0])
    return max(",;\t", key=first.count)


def read_rows(path: Path, what: str) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV that a person has edited, each with its line number; names of columns in lower case.

    Raises
    ------
    PanguLabError
        It cannot be read.
    """
    try:
        text = decoded(path.read_bytes())[0].lstrip("\ufeff")
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter(text))
        head = [name.strip().lower() for name in next(rows, [])]
        return [(rows.line_num, dict(zip(head, row, strict=False))) for row in rows if any(row)]
    except OSError as error:
        raise PanguLabError(f"{path}: {what} cannot be read ({error.strerror})") from error
    except (csv.Error, PanguLabError) as error:
        raise PanguLabError(f"{path}: {what} cannot be read ({error})") from error


def number(value: str) -> float | None:
    """A number as people write it, with a point or a comma; None where it is none."""
    value = bare(value.strip())
    return float(value.replace(",", ".")) if _NUMBER.fullmatch(value) else None
