"""Writing files so that nothing is ever half written: a temporary name first, then a rename."""

import os
import tempfile
from pathlib import Path

from pangu_lab.errors import PanguLabError


def atomic_write(path: Path | str, content: str | bytes) -> Path:
    """Write ``content`` (text as UTF-8) to ``path``; a reader sees the old file or the new one, never a part.

    Raises
    ------
    PanguLabError
        The folder cannot be made or written, or the disk is full. The old file is then still there.
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise PanguLabError(
            f"{path}: cannot be written ({error.strerror}); free some space or choose a folder you may write to"
        ) from error
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
    return path
