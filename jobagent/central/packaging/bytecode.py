"""Compiling Python modules of a package, the same bytes from the same sources.

Jobs see packages read-only: without compiled files every job would compile every module that it imports (half a
second for numpy).  Compiled files with a time stamp would be stale, since archives have no times; those with a
checked hash would read every source again.  So: unchecked hash (PEP 552), which is right because a published tree
never changes.

`marshal` writes references that depend on what else the compiling process holds; its version 2 has none, and every
Python reads it.  Constants that it cannot write (slices, since Python 3.14) need the current version.
"""

from __future__ import annotations

import importlib.util
import marshal
import warnings
from collections.abc import Collection
from pathlib import Path

_MARSHAL_WITHOUT_REFERENCES = 2
_UNCHECKED_HASH = 0b01  # PEP 552: hash-based, source is not looked at


def compile_modules(tree: Path, *, leave_out: Collection[str] = ()) -> int:
    """Compile every module below `tree` beside its source for the running Python; return how many.

    `leave_out` are paths relative to the tree whose sources will change when they are installed.  What cannot be
    compiled (templates, tests of syntax errors) is left out.
    """
    count = 0
    for source in sorted(tree.rglob("*.py")):
        relative = source.relative_to(tree).as_posix()
        if relative not in leave_out and source.is_file() and not source.is_symlink():
            count += _compile(source, relative)
    return count


def _compile(source: Path, name: str) -> bool:
    data = source.read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = compile(data, name, "exec", dont_inherit=True, optimize=0)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    target = Path(importlib.util.cache_from_source(str(source), optimization=""))
    target.parent.mkdir(exist_ok=True)
    header = importlib.util.MAGIC_NUMBER + _UNCHECKED_HASH.to_bytes(4, "little") + importlib.util.source_hash(data)
    try:
        target.write_bytes(header + marshal.dumps(code, _MARSHAL_WITHOUT_REFERENCES))
    except ValueError:
        target.write_bytes(header + marshal.dumps(code))
    return True
