"""Which of a lab's own cells the answers need: the others cost most of the time and change no verdict.

A notebook is reduced statement by statement. Kept are all imports, everything up to ``lab.start``, statements that
set something for the whole process, and the functions, classes and constants that answers name, directly or through
each other. Whatever else an answer might notice makes the whole notebook run, as does an answer that looks names up
at run time or keeps a state that the lab's cells could change by calling it. Read ``reduced`` first.
"""

import ast
import re
import symtable
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from pangu_lab.grading.notebook_format import without_magics
from pangu_lab.grading.rebuild import KEPT, Step

# Ways to a name that no reading of the source shows, to files that a cell may have written, and to the history.
_DYNAMIC = frozenset(
    [
        "eval",
        "exec",
        "compile",
        "globals",
        "locals",
        "vars",
        "dir",
        "open",
        "input",
        "get_ipython",
        "__builtins__",
        "builtins",
        "__import__",
        "importlib",
        "__main__",
        "inspect",
        "gc",
        "sys",
        "ctypes",
        "runpy",
        "pickle",
        "shelve",
        "IPython",
        "In",
        "Out",
    ]
)
_DYNAMIC_PARTS = frozenset(
    [
        "__globals__",
        "__dict__",
        "__code__",
        "__closure__",
        "f_globals",
        "f_locals",
        "f_back",
        "user_ns",
        "modules",
        "_getframe",
        "currentframe",
        "read_text",
        "read_bytes",
        "glob",
        "rglob",
        "iterdir",
        "listdir",
        "scandir",
        "walk",
        "environ",
        "getenv",
    ]
)
_HISTORY = re.compile(r"_+|_i*\d*|_[iod]h")
# What sets something for the whole process, by its name.
_SETTER = re.compile(r"set_|use_|enable|disable|register|install|patch|reset|filterwarnings|simplefilter|chdir|putenv")
# Every probe starts from a seed of its own; numbers of threads and what is logged change no verdict.
_HARMLESS = re.compile(
    r"set_num_(interop_)?threads|set_verbosity\w*|(en|dis)able_progress_bars?|(manual_)?seed(_all)?|getLogger"
)
_SHOWS = ("pangu_lab.", "rich", "IPython.display", "matplotlib.pyplot")  # our own functions set nothing, start aside
_PURE = frozenset(
    [
        "len",
        "sorted",
        "list",
        "tuple",
        "set",
        "dict",
        "sum",
        "min",
        "max",
        "any",
        "all",
        "zip",
        "enumerate",
        "range",
        "isinstance",
        "str",
        "repr",
    ]
)
_READS = frozenset(["items", "keys", "values", "get", "index", "count", "copy"])
_PLAIN_DECORATORS = frozenset(["staticmethod", "classmethod", "property", "abstractmethod", "dataclass", "override"])
# A value without a call is as fixed as the names in it: a number, a text, a part of a library, the name of a type.
_FIXED = (ast.Constant, ast.Name, ast.Attribute, ast.Subscript, ast.Tuple, ast.BinOp, ast.UnaryOp, ast.operator,
          ast.unaryop, ast.Load)  # fmt: skip
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@dataclass(frozen=True)
class Reduced:
    """The steps that are enough, and the names that left-out statements would have bound."""

    steps: tuple[Step, ...]
    left_out: frozenset[str]


class _Everything(Exception):
    """Every cell has to run; the reason in words."""


def reduced(steps: Iterable[Step]) -> Reduced | None:
    """The steps without the statements that no answer needs; None where every cell has to run."""
    try:
        return _reduced(tuple(steps))
    except (_Everything, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def why_everything(steps: Iterable[Step]) -> str:
    """Why every cell has to run; the empty string where some can be left out."""
    try:
        _reduced(tuple(steps))
    except (_Everything, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return str(error) or type(error).__name__
    return ""


def _reduced(steps: tuple[Step, ...]) -> Reduced:
    cells = [_Cell(step) for step in steps if step.kind == "given"]
    wanted: set[str] = set()
    for step in steps:
        if step.kind == "answer":
            for source in {step.source, step.stub}:
                wanted |= _answer_names(source)
        elif step.kind == "check":
            wanted |= _names(step.source) | _names(step.expression)
    kept = _kept([statement for cell in cells for statement in cell.statements], wanted - {KEPT})
    by_step = dict(zip([step.cell for step in steps if step.kind == "given"], cells, strict=True))
    if len(by_step) != len(cells):
        raise _Everything("two cells have one id")
    left = {name for cell in cells for s in cell.statements if id(s) not in kept for name in s.binds}
    sources = {cell: part.source(kept) for cell, part in by_step.items()}
    return Reduced(
        tuple(
            replace(step, source=sources[step.cell]) if step.kind == "given" else step
            for step in steps
            if step.kind != "given" or sources[step.cell]
        ),
        frozenset(left),
    )


# --- the lab's own cells ----------------------------------------------------------------------------


@dataclass(eq=False)
class _Statement:
    """A statement at the top of a given cell: what it binds, what it names, and what kind of thing comes of it."""

    node: ast.stmt
    always: bool
    binds: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    kind: str = "other"

    def __post_init__(self) -> None:
        node = self.node
        self.names = _names(ast.unparse(node))
        self.binds = set(_bound(node))
        if isinstance(node, ast.Import | ast.ImportFrom):
            self.kind = "import"
            if "*" in self.binds:
                raise _Everything("a cell of the lab has a star import")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            self.kind = "definition"
        elif isinstance(node, ast.Assign) and all(isinstance(target, ast.Name) for target in node.targets):
            self.kind = "constant" if all(isinstance(p, _FIXED) for p in ast.walk(node.value)) else "other"
        if any(isinstance(part, ast.Global) for part in ast.walk(node)):
            raise _Everything("a cell of the lab has a global statement")


class _Cell:
    def __init__(self, step: Step) -> None:
        self.whole = step.source
        plain = without_magics(step.source)
        magic = plain != step.source
        tree = ast.parse(plain)
        start = any(ast.unparse(n.func) in ("lab.start", "start") for n in ast.walk(tree) if isinstance(n, ast.Call))
        # Python cannot say what a magic does, so its cell stays as it is.
        self.statements = [_Statement(node, magic or start or step.cell == "parameters") for node in tree.body]
        if magic and not self.statements:
            raise _Everything("a cell of the lab is all magic")

    def source(self, kept: set[int]) -> str:
        chosen = [statement.node for statement in self.statements if id(statement) in kept]
        if len(chosen) == len(self.statements):
            return self.whole
        return ast.unparse(ast.Module(chosen, [])) if chosen else ""


def _kept(statements: list[_Statement], wanted: set[str]) -> set[int]:
    """The statements (by id) to run for ``wanted`` names."""
    binders: dict[str, list[_Statement]] = {}
    for statement in statements:
        for name in statement.binds:
            binders.setdefault(name, []).append(statement)
    imported = {name for name, all_of in binders.items() if all(s.kind == "import" for s in all_of)}
    shows = {name for s in statements if s.kind == "import" for name in _showing(s.node)}
    setters = [s for s in statements if s.kind != "definition" and _sets(s.node, imported, shows)]
    effects = {
        name
        for s in statements
        if s.kind == "definition" and _sets(s.node, imported, set(imported))
        for name in s.binds
    }
    for statement in statements:
        if statement.names & effects and not statement.binds & effects:
            raise _Everything(f"the lab calls {sorted(statement.names & effects)[0]}, which sets something")
    always = [s for s in statements if s.always or s.kind == "import"]
    kept = {id(s) for s in [*always, *setters]}
    settled: set[str] = set()
    for statement in statements:
        if statement.always:
            settled |= statement.binds
    waiting = list(wanted) + [n for s in [*always, *setters] if s.kind != "import" for n in s.names]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for statement in binders.get(name, []):
            if statement.kind == "other" and not statement.always:
                raise _Everything(f"{name} is a variable of the lab")
            kept.add(id(statement))
            if statement.kind != "import":
                waiting += statement.names
        if name in binders and name not in imported:
            for statement in statements:
                if name in _changed(statement.node) and not statement.always:
                    raise _Everything(f"{name} is changed by the lab")
    # A variable of the cell that starts the lab may be changed by whatever names it, except by asking its size.
    for name in seen & settled - imported:
        if name not in ("run", "MODE", "SEED") and any(name in s.names and not s.always for s in statements):
            raise _Everything(f"{name} is a variable of the lab")
    return kept


def _sets(node: ast.AST, imported: set[str], shows: set[str]) -> bool:
    """Whether running it may set something for the whole process: settings of libraries, not the notebook's names."""
    for part in _running(node):
        if isinstance(part, ast.Call) and _path(part.func) in imported:
            if _SETTER.match(_called(part)) and not _harmless(part):
                return True
        elif isinstance(part, ast.Expr) and isinstance(part.value, ast.Call):
            if _path(part.value.func) in imported - shows and not _harmless(part.value):
                return True
        elif _written(part) and _root(part) in imported:
            return True
    return False


def _written(node: ast.AST) -> bool:
    """Whether it is an attribute or an item that is set or deleted."""
    return isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load)


def _harmless(call: ast.Call) -> bool:
    if _called(call) in ("filterwarnings", "simplefilter"):
        return bool(call.args) and isinstance(call.args[0], ast.Constant) and call.args[0].value == "ignore"
    return bool(_HARMLESS.fullmatch(_called(call)))


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _path(node: ast.AST) -> str:
    """The name at the start of ``a.b.c``; what a call or an item gives is an object of its own."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when a statement does; of a definition all of it, as if it were called."""
    inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    waiting: list[ast.AST] = [node]
    while waiting:
        part = waiting.pop()
        yield part
        if inside or part is node or not isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += ast.iter_child_nodes(part)


def _showing(node: ast.stmt) -> set[str]:
    """The names of an import that only show something."""
    if isinstance(node, ast.ImportFrom):
        shown = (node.module or "").startswith(_SHOWS)
        return {alias.asname or alias.name for alias in node.names} if shown else set()
    if isinstance(node, ast.Import):
        return {alias.asname or alias.name.split(".")[0] for alias in node.names if alias.name.startswith(_SHOWS)}
    return set()


# --- answers ----------------------------------------------------------------------------------------


def _answer_names(source: str) -> set[str]:
    """The names that an answer takes from the notebook or leaves in it.

    Raises
    ------
    _Everything
        They cannot be known, or the answer keeps a state.
    """
    if without_magics(source) != source:
        raise _Everything("an answer uses magics")
    tree, names = ast.parse(source), _names(source)
    history = sorted(name for name in names if _HISTORY.fullmatch(name))
    if history:
        raise _Everything(f"an answer uses {history[0]}")
    for node in ast.walk(tree):
        used: list[str] = []
        if isinstance(node, ast.Name) and node.id in _DYNAMIC:
            used = [node.id]
        elif isinstance(node, ast.Attribute) and node.attr in _DYNAMIC_PARTS:
            used = [node.attr]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [getattr(node, "module", None) or ""] + [alias.name for alias in node.names]
            parts = {part for module in modules for part in module.split(".")}
            used = sorted(parts & (_DYNAMIC | _DYNAMIC_PARTS | {"*"}))
        if used:
            raise _Everything(f"an answer uses {used[0]}")
    state = _state(tree, names)
    if state:
        raise _Everything(f"an answer keeps a state: {state}")
    return names


def _state(tree: ast.Module, names: set[str]) -> str:
    """How calling an answer's functions might change what a later call does; empty where it cannot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Global | ast.Nonlocal):
            return "global or nonlocal"
        if _written(node):
            root = _root(node)
            if not root or root in names or root == "cls":
                return f"it changes {ast.unparse(node)}"
        if isinstance(node, ast.Call):
            name = _called(node)
            if name in ("setattr", "delattr"):
                return f"it calls {name}"
            if _SETTER.match(name) and _path(node.func) in names and not _harmless(node):
                return f"it calls {name}"
        if isinstance(node, _SCOPES):
            defaults = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
            if any(isinstance(d, ast.List | ast.Dict | ast.Set | ast.Call | ast.ListComp) for d in defaults):
                return "a default that can change"
        for decorator in getattr(node, "decorator_list", []):
            called = decorator.func if isinstance(decorator, ast.Call) else decorator
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name not in _PLAIN_DECORATORS and name not in ("no_grad", "inference_mode"):
                return f"the decorator {name}"
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.Assign | ast.AnnAssign) and part.value and not _immutable(part.value):
                    return f"a value of the class {node.name}"
    return _data_in_functions(tree)


def _data_in_functions(tree: ast.Module) -> str:
    """A name at the top of the answer that may hold something changeable which a function could change."""
    literals: dict[str, ast.expr] = {}
    data: set[str] = set()
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        value = getattr(statement, "value", None)
        for name in _bound(statement):
            if isinstance(statement, ast.Assign | ast.AnnAssign) and value is not None and name not in literals:
                literals[name] = value
            else:
                data.add(name)
    constants = {name for name, value in literals.items() if _immutable(value)} - data
    flat = {name for name, value in literals.items() if _flat(value, constants)} - data - constants
    parents = {id(child): parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
    for function in (node for node in ast.walk(tree) if isinstance(node, _SCOPES)):
        for node in ast.walk(function):
            if not isinstance(node, ast.Name) or node.id not in (literals.keys() | data) - constants:
                continue
            if node.id not in flat or not _only_read(node, parents[id(node)]):
                return node.id
    return ""


def _only_read(node: ast.Name, parent: ast.AST) -> bool:
    if isinstance(parent, ast.Call):
        return getattr(parent.func, "id", "") in _PURE
    if isinstance(parent, ast.Attribute):
        return parent.attr in _READS
    if isinstance(parent, ast.For | ast.comprehension):
        return parent.iter is node
    return isinstance(parent, ast.Subscript | ast.Compare | ast.BinOp | ast.FormattedValue)


# --- names ------------------------------------------------------------------------------------------


def _names(source: str) -> set[str]:
    """The names that a source takes from the notebook, or binds there; not those of its functions' own scopes."""
    found: set[str] = set()
    waiting = [symtable.symtable(source, "<cell>", "exec")]
    while waiting:
        table = waiting.pop()
        whole = table.get_type() == "module"
        for symbol in table.get_symbols():
            own = table.get_type() == "class" and symbol.is_referenced()
            if whole or own or symbol.is_global():
                found.add(symbol.get_name())
        waiting += table.get_children()
    return found


def _bound(node: ast.stmt) -> Iterator[str]:
    """The names that a statement at the top of a cell may bind or delete."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
        return
    for part in _running(node):
        if isinstance(part, ast.Name) and not isinstance(part.ctx, ast.Load):
            yield part.id
        elif isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield part.name
        elif isinstance(part, ast.Import | ast.ImportFrom):
            for alias in part.names:
                yield alias.asname or alias.name.split(".")[0]
        elif isinstance(part, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and part.name:
            yield part.name
        elif isinstance(part, ast.MatchMapping) and part.rest:
            yield part.rest


def _changed(node: ast.stmt) -> set[str]:
    """The names whose objects a statement writes to."""
    found = set()
    for part in ast.walk(node):
        if _written(part):
            found.add(_root(part))
        elif isinstance(part, ast.Call) and getattr(part.func, "id", "") in ("setattr", "delattr") and part.args:
            found.add(_root(part.args[0]))
    return found


def _root(node: ast.AST) -> str:
    """The name at the start of a chain of attributes, items and calls."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _immutable(node: ast.expr) -> bool:
    """Whether it is a number, a text or a tuple of such, written down."""
    if isinstance(node, ast.Tuple):
        return all(map(_immutable, node.elts))
    if isinstance(node, ast.UnaryOp):
        return _immutable(node.operand)
    if isinstance(node, ast.BinOp):
        return _immutable(node.left) and _immutable(node.right)
    return isinstance(node, ast.Constant)


def _flat(node: ast.expr, constants: set[str]) -> bool:
    """Whether it is a list, set or dictionary of immutable things, written down."""
    parts = node.elts if isinstance(node, ast.List | ast.Set) else None
    if isinstance(node, ast.Dict):
        parts = [*(key for key in node.keys if key), *node.values]
    return parts is not None and all(_immutable(p) or (isinstance(p, ast.Name) and p.id in constants) for p in parts)
