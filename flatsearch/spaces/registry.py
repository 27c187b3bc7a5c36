"""Search spaces by name: entry points, ``pkg.mod:attr`` and ``file.py:attr``, with arguments."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatsearch.errors import SpaceError, unknown_name

if TYPE_CHECKING:
    from types import CodeType

    from flatsearch.spaces.space import SearchSpace

__all__ = ["ENTRY_POINT_GROUP", "load_space", "space_identity", "space_names"]

ENTRY_POINT_GROUP = "flatsearch.search_spaces"


def _registered() -> dict[str, EntryPoint]:
    """Return the installed search spaces by name; the same name twice is an error."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        # The same distribution can be listed twice (installed and on the path): same value.
        if point.name in found and found[point.name].value != point.value:
            raise SpaceError(
                f"search space {point.name!r} is registered twice: by {found[point.name].value}"
                f" and by {point.value}; uninstall one"
            )
        found[point.name] = point
    return found


def space_names() -> list[str]:
    """Return the names of the installed search spaces, sorted.

    Example:
        >>> "resnet_small" in space_names()
        True
    """
    return sorted(_registered())


class _SourceLoader(SourceFileLoader):
    """Compiles a file each time.

    Bytecode beside it counts as current where a file that is as long as before was changed within a
    second.
    """

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _from_file(path: Path, name: str) -> Any:
    """Import a file under a name of its own and return one attribute."""
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    module_name = f"_flatsearch_space_{path.stem}_{digest}"
    loader = _SourceLoader(module_name, str(path))
    spec = importlib.util.spec_from_loader(module_name, loader)
    assert spec is not None  # noqa: S101 - only a loader without a module has none
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # so that classes in the file can be pickled
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise SpaceError(f"importing {path} failed: {type(error).__name__}: {error}") from error
    return _attribute(module, name, str(path))


def _attribute(module: object, name: str, where: str) -> Any:
    try:
        return attrgetter(name)(module)
    except AttributeError:
        raise SpaceError(f"{where} has no attribute {name!r}") from None


def space_identity(reference: str) -> tuple[str, str | None]:
    """Return what tells one search space from another, however it was referred to.

    That is the reference without folders, and for files the first digits of their SHA-256.
    """
    place, arguments = _parts(reference)
    module, colon, attribute = place.rpartition(":")
    name = Path(module).name if module.endswith(".py") else module
    texts = [f"{name}{colon}{attribute}", *(f"{k}={Path(v).name}" for k, v in arguments.items())]
    files = [Path(text) for text in (module, *arguments.values()) if text and Path(text).is_file()]
    content = b"".join(file.read_bytes() for file in files)
    return ",".join(texts), hashlib.sha256(content).hexdigest()[:12] if files else None


def _parts(reference: str) -> tuple[str, dict[str, str]]:
    """Return what is before the arguments of a reference, and these."""
    place, *given = re.split(r",(?=\w+=)", reference)
    return place, dict(text.split("=", 1) for text in given)


def load_space(reference: str) -> SearchSpace:
    """Return a search space.

    Args:
        reference: An installed space's name, ``"pkg.mod:attr"`` or ``"path/file.py:attr"``. The
            attribute is a class, which is called without arguments, or a ready object. Arguments,
            which are texts, follow with commas: ``"torchvision_zoo,weights=DEFAULT"``.

    Returns:
        The search space.

    Raises:
        SpaceError: If there is no such space, it cannot be imported, or it lacks `suggest` or
            `build`.

    Example:
        >>> type(load_space("resnet_small")).__name__
        'ResNetSmall'
    """
    whole = reference
    reference, arguments = _parts(whole)
    module_name, colon, attribute = reference.rpartition(":")
    if reference.endswith(".py"):
        raise SpaceError(f"name the class too: {reference}:ClassName")
    if not colon:
        registered = _registered()
        if reference not in registered:
            message = unknown_name(
                "search space", reference, registered, also="; or pkg.mod:Class, ./file.py:Class"
            )
            raise SpaceError(message)
        point = registered[reference]
        module_name, attribute = point.module, point.attr
    if module_name.endswith(".py"):
        path = Path(module_name)
        if not path.is_file():
            raise SpaceError(f"search space file {module_name!r} does not exist")
        found = _from_file(path, attribute)
    else:
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            raise SpaceError(
                f"search space {reference!r}: importing {module_name!r} failed:"
                f" {type(error).__name__}: {error}"
            ) from error
        found = _attribute(module, attribute, f"module {module_name!r}")
    return _instance(found, whole, arguments)


def _instance(found: Any, reference: str, arguments: dict[str, str]) -> SearchSpace:
    if arguments and not isinstance(found, type):
        raise SpaceError(f"search space {reference!r}: it is ready, and takes no arguments")
    # Before it is called: a model file names its space, and may name any class of any module.
    missing = [name for name in ("suggest", "build") if not callable(getattr(found, name, None))]
    if missing:
        kind = found if isinstance(found, type) else type(found)
        raise SpaceError(
            f"search space {reference!r}: {kind.__name__} has no method {missing[0]!r}"
        )
    if isinstance(found, type):
        try:
            return found(**arguments)
        except Exception as error:
            raise SpaceError(
                f"search space {reference!r}: {found.__name__}() failed:"
                f" {type(error).__name__}: {error}"
            ) from error
    return found
