"""``papermill --engine pangu-lab in.ipynb out.ipynb``: papermill runs a notebook, its kernel is in the box.

Papermill finds the engine by its entry point. Where no box can be had the engine refuses, unless the environment
variable ``PANGU_LAB_NO_BOX`` is 1. In the box there is no network and no file of yours, and ``check`` says only
that the grader will look; what a cell may print and how long it may take is limited.
"""

import functools
import importlib
import os
from typing import Any

import nbformat

from pangu_lab.grading.box import Box, Limits, NoBox, why_no_box
from pangu_lab.grading.kernel import Ended, Kernel

LIMITS = Limits(cell_seconds=3600, notebook_seconds=6 * 3600, cell_output=1_000_000, notebook_output=50_000_000)


def __getattr__(name: str) -> Any:
    """``BoxedEngine``, papermill's engine of the name ``pangu-lab``; it is made when somebody asks for it.

    Papermill asks, by the entry point, while it is being imported itself: a class at the top level here would not be
    there yet if this module had been the one to import papermill.
    """
    if name == "BoxedEngine":
        return _on(importlib.import_module("papermill.engines").Engine)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _on(base: type) -> type:
    """The one class ``BoxedEngine``."""
    return type("BoxedEngine", (_Boxed, base), {"__doc__": _Boxed.__doc__, "__module__": __name__})


class _Boxed:
    """Papermill's engine of the name ``pangu-lab``."""

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: Any,
        kernel_name: str,
        start_timeout: float = 60,
        execution_timeout: float | None = None,
        **_: Any,
    ) -> None:
        """Run the cells one by one until one fails; papermill itself reports the error and writes the notebook.

        Raises
        ------
        NoBox
            This machine cannot box a kernel, and nobody has allowed to go without.
        """
        limits = Limits(
            **{**vars(LIMITS), "start_seconds": start_timeout, "cell_seconds": execution_timeout or LIMITS.cell_seconds}
        )
        boxed = os.environ.get("PANGU_LAB_NO_BOX") != "1"
        reason = why_no_box() if boxed else ""
        if reason:
            raise NoBox(
                f"no box for this notebook: {reason}; install or allow bubblewrap, or set PANGU_LAB_NO_BOX=1, "
                "which lets the notebook read this machine's files and use its network"
            )
        with Box(limits, boxed=boxed) as box:
            kernel = Kernel(box)
            try:
                for number, cell in enumerate(nb_man.nb.cells):
                    if cell.cell_type != "code" or not cell.source.strip():
                        continue
                    nb_man.cell_start(cell, number)
                    try:
                        going_on = _run(kernel, cell, number + 1)
                        if not going_on:
                            nb_man.cell_exception(cell, cell_index=number)
                    finally:
                        nb_man.cell_complete(cell, cell_index=number)
                    if not going_on:
                        return
            finally:
                kernel.close()


def _run(kernel: Kernel, cell: Any, count: int) -> bool:
    """Run one cell and keep its outputs; whether the next may follow."""
    outputs = Outputs(kernel.limits.cell_output)
    cell.execution_count = count
    try:
        reply = kernel.execute(cell.source, kernel.limits.cell_seconds, keep=outputs.take)
    except Ended as end:
        outputs.take("error", {"ename": end.status, "evalue": end.reason, "traceback": [end.reason]})
        return False
    finally:
        cell.outputs = outputs.finished()
    if reply.cut:
        cell.outputs.append(nbformat.v4.new_output("stream", name="stderr", text="(cut: too much output)\n"))
    return not reply.error or "raises-exception" in cell.metadata.get("tags", [])


class Outputs:
    """Messages of output as a notebook keeps them: pieces of one stream joined, displays updated, cleared ones gone.

    A message that is none is passed over; text is kept up to ``room`` characters.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self._kept: list[tuple[str, Any]] = []  # the name of its display, and the output
        self._clear = False

    def take(self, kind: str, content: dict[str, Any]) -> None:
        """Keep what one message says."""
        if kind == "clear_output":
            self._clear = True
        elif kind == "update_display_data":
            name = content["transient"]["display_id"]
            for display, output in self._kept:
                if display == name:
                    output.update(data=nbformat.from_dict(content["data"]))
        elif kind in ("stream", "display_data", "execute_result", "error"):
            if self._clear:
                self._kept, self._clear = [], False
            self._add(kind, content)

    def _add(self, kind: str, content: dict[str, Any]) -> None:
        if kind == "stream":
            text = str(content["text"])[: max(self.room, 0)]
            self.room -= len(text)
            last = self._kept[-1][1] if self._kept else {}
            if last.get("name") == content["name"]:
                last["text"] += text
                return
            content = {"name": content["name"], "text": text}
        display = str(content.pop("transient", {}).get("display_id", ""))
        self._kept.append((display, nbformat.v4.new_output(kind, **content)))

    def finished(self) -> list[Any]:
        """The outputs."""
        return [output for _, output in self._kept]
