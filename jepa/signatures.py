"""Read what a constructor takes from its source text, without importing it.

Importing torch and Lightning takes seconds; a mistyped key should be refused before that.
"""

import ast
import functools
import importlib.util
from pathlib import Path


@functools.cache
def parameters(target: str) -> frozenset[str] | None:
    """Return the keyword names of the class or function `target`, read from its source text.

    None where the source cannot tell: it is then left to the constructor.
    """
    found = find_definition(target)
    if found is None:
        return None
    path, node = found
    if isinstance(node, ast.FunctionDef):
        return None if node.args.kwarg else frozenset(names_of(node))
    init = next(
        (f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None
    )
    names = set(names_of(init)) - {"self"} if init else set()
    if init is None and (node.decorator_list or not node.bases):
        return None  # a dataclass, say
    if init is not None and init.args.kwarg and not target.startswith("jepa."):
        return None  # they may go anywhere
    if init is None or init.args.kwarg:  # ours are handed on to the bases
        for base in node.bases:
            known = parameters(absolute(ast.unparse(base), path))
            if known is None:
                return None
            names |= known
    return frozenset(names)


def names_of(function: ast.FunctionDef) -> list[str]:
    """Return the parameters that can be given by name."""
    return [argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)]


def find_definition(target: str) -> tuple[Path, ast.ClassDef | ast.FunctionDef] | None:
    """Follow a dotted name through files and re-exports to its definition."""
    path, rest = locate(target)
    if path is None or len(rest) != 1:
        return None
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == rest[0]:
            return path, node
    origin = absolute(rest[0], path)
    return find_definition(origin) if origin not in (rest[0], target) else None


def locate(target: str) -> tuple[Path | None, list[str]]:
    """Split a dotted name into the file of its module and the rest, importing nothing."""
    first, *rest = target.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not (spec.origin or "").endswith(".py"):
        return None, rest
    path = Path(str(spec.origin))
    while rest and path.name == "__init__.py":
        package, module = path.parent / rest[0] / "__init__.py", path.parent / f"{rest[0]}.py"
        if not (package.exists() or module.exists()):
            break
        path = package if package.exists() else module
        rest = rest[1:]
    return path, rest


def absolute(name: str, path: Path) -> str:
    """Return the full dotted name that `name` stands for in the module at `path`."""
    first, _, tail = name.partition(".")
    package = list(package_of(path))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        for alias in node.names:
            if (alias.asname or alias.name) != first:
                continue
            if isinstance(node, ast.Import):
                return name.replace(first, alias.name, 1)
            parents = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            return ".".join([module, alias.name, *([tail] if tail else [])])
    inside = [*package, *([path.stem] if path.name != "__init__.py" else [])]
    return ".".join([*inside, name])


def package_of(path: Path) -> tuple[str, ...]:
    """Return the package that the module at `path` belongs to."""
    names: list[str] = []
    folder = path.parent
    while (folder / "__init__.py").exists():
        names.insert(0, folder.name)
        folder = folder.parent
    return tuple(names)
