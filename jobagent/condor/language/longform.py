"""Long-form ClassAds without HTCondor's bindings: what a hook client must read and write of them.

One attribute a line, `Name = expression`, in the *old* syntax, which is what the starter writes to hooks and reads
from them: inside a string only `"` is escaped, a backslash is a backslash, and a newline cannot be said at all.
Hook clients start on every job's path, therefore nothing is imported (`re` alone takes as long as all they do).
"""

from __future__ import annotations

Value = str | int | float | bool | tuple[str, ...]
Ad = dict[bytes, bytes]  # what `read` makes: expressions by the lower-case name


def read(ad: bytes) -> Ad:
    """Return the expressions of an ad by the names of their attributes; of two with one name, the first."""
    found: Ad = {}
    for line in ad.split(b"\n"):
        name, equals, text = line.partition(b"=")
        if equals:
            found.setdefault(name.rstrip(b" \t").lower(), text)
    return found


def expression(ad: Ad, name: str) -> str | None:
    """Return the text of an attribute's expression, None where it is absent; case of names does not count."""
    text = ad.get(name.lower().encode())
    return None if text is None else text.decode("utf-8", "surrogateescape").strip()


def string_attribute(ad: Ad, name: str) -> str | None:
    """Return the value of a string attribute; None where it is absent.

    Raises:
        ValueError: The expression is something else than a string.
    """
    text = expression(ad, name)
    if text is None:
        return None
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        raise ValueError(f"{name} is not a string: {text[:100]}")
    return text[1:-1].replace('\\"', '"')


def literal(value: Value) -> str:
    """Return the expression of a value.

    Raises:
        ValueError: No expression in this syntax has that value.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        if not is_sayable(value):
            raise ValueError(f"a newline or NUL cannot be said in an ad: {value[:100]!r}")
        return '"' + value.replace('"', '\\"') + '"'
    if isinstance(value, tuple):
        if any('"' in item or "\\" in item for item in value):
            raise ValueError(f"quotes and backslashes cannot be said in a list: {value!r}")
        return "{ " + ", ".join(map(literal, value)) + " }" if value else "{ }"
    return repr(value)


def is_sayable(text: str) -> bool:
    """Whether a string of an ad can have this value."""
    return not any(sign in text for sign in "\n\r\0")


def assignment(name: str, value: Value) -> str:
    """Return one line of a long-form ad, without its newline."""
    return f"{name} = {literal(value)}"
