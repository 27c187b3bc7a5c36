"""A program of `torch.export.save` as data alone: what torch would run while it reads is not there.

Reading such an archive, torch evaluates texts (the sizes, the guards), looks operators up by name,
writes the names of arguments into source that it compiles, and loads native code if there is any.
Only what a plain network needs goes on to torch, in a new archive: sizes that are arithmetic,
operators that compute, names that are names. Notes for debugging and guards are left out.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from typing import TYPE_CHECKING, Any

from flatsearch.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["plain_program"]


class _NotPlainError(Exception):
    """Says what is in an archive beside a network."""


_MEMBER = re.compile(
    r"(?!\.)[^/\\]+/(archive_format|archive_version|byteorder|\.data/\w+|models/[\w-]+\.json"
    r"|data/(weights|constants|sample_inputs)/(?!custom_obj|opaque_obj)[\w-]+(\.\w+)?"
    r"|extra/[\w.-]+)"
    # Of torch 2.6.
    r"|version|serialized_\w+\.(json|pt)|extra_files/[\w.-]+"
)
_EXTRA = re.compile(r"([^/]+/extra|extra_files)/")
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|quantized|quantized_decomposed|torchvision)\.(?!__)(?!from_file|save)"
    r"\w+\.(?!__)\w+"
    r"|torch\.ops\.higher_order\.(cond|wrap_with_autocast|wrap_with_set_grad_enabled)"
    r"|torch\._?sym_[a-z]+|math\.[a-z]\w*"
    r"|_operator\.(abs|add|and_|eq|floordiv|ge|getitem|gt|le|lt|mod|mul|ne|neg|not_|or_|pow|sub"
    r"|truediv)"
)
_NAME = re.compile(r"[\w.:+-]*")
_FUNCTION = re.compile(
    "Symbol|Integer|Float|Rational|Pow|Abs|Max|Min|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|Where|Mod|PythonMod"
    "|FloorDiv|CeilDiv|CleanDiv|IntTrueDiv|FloatTrueDiv|ModularIndexing|LShift|RShift|PowByNatural"
    "|FloatPow|CeilToInt|FloorToInt|TruncToInt|TruncToFloat|RoundToInt|RoundDecimal|ToFloat"
    "|IsNonOverlappingAndDenseIndicator"
)
_ARITHMETIC = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Name, ast.Constant,
    ast.keyword, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context,
)  # fmt: skip
_CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict"}


def plain_program(path: Path) -> io.BytesIO:
    """Return a `.pt2` file with what a plain network needs, for `torch.export.load`.

    Args:
        path: The file.

    Raises:
        UsageError: If there is anything else in it.
        zipfile.BadZipFile: If it is no archive.
    """
    try:
        return _repacked(path)
    except _NotPlainError as error:
        raise UsageError(f"{str(path)!r} holds more than a plain network: {error}") from None


def _repacked(path: Path) -> io.BytesIO:
    plain = io.BytesIO()
    with zipfile.ZipFile(path) as given, zipfile.ZipFile(plain, "w") as kept:
        names = given.namelist()
        if len(set(names)) < len(names):  # torch might read the other one
            raise _NotPlainError("two parts of one name")
        for name in names:
            if not _MEMBER.fullmatch(name):
                raise _NotPlainError(f"part {name[:80]!r}")
            content = given.read(name)
            if name.endswith(".json") and not _EXTRA.match(name):
                content = json.dumps(_plain("", json.loads(content))).encode()
            kept.writestr(name, content)
    plain.seek(0)
    return plain


def _plain(key: str, value: Any) -> Any:
    """Return JSON as it is, but for notes and guards.

    Args:
        key: What it is, by the name it has in a dictionary.
        value: Anything.
    """
    if isinstance(value, dict):
        if key == "metadata":
            return {}
        _check("name", "".join(value))
        return {name: _plain(name, part) for name, part in value.items()}
    if isinstance(value, list):
        return [] if key == "guards_code" else [_plain(key, part) for part in value]
    if isinstance(value, str):
        _check(key, value)
    return value


def _check(key: str, text: str) -> None:
    if key in {"as_string", "as_strings"}:  # what an operator is given, in quotes
        return
    if key == "expr_str":
        fine = _is_arithmetic(text)
    elif key in {"target", "as_operator"}:
        fine = _OPERATOR.fullmatch(text) is not None
    elif key in {"in_spec", "out_spec"}:
        fine = not text or _is_nested(json.loads(text)[1])
    else:
        fine = _NAME.fullmatch(text) is not None
    if not fine:
        raise _NotPlainError(f"{key or 'name'} {text[:80]!r}")


def _is_arithmetic(text: str) -> bool:
    """Return whether an expression computes with symbols and numbers, and calls nothing else."""

    def fine(node: ast.AST) -> bool:
        if isinstance(node, ast.Call):
            return isinstance(node.func, ast.Name) and bool(_FUNCTION.fullmatch(node.func.id))
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value.isidentifier()  # of a symbol
        return isinstance(node, _ARITHMETIC)

    return all(map(fine, ast.walk(ast.parse(text.strip(), mode="eval"))))


def _is_nested(spec: Any) -> bool:
    """Return whether arguments are tensors in tuples, lists and dictionaries."""
    keys = json.loads(spec["context"] or "null") or []
    return (
        spec["type"] in _CONTAINERS
        and all(str(key).isidentifier() for key in keys)
        and all(map(_is_nested, spec["children_spec"]))
    )
