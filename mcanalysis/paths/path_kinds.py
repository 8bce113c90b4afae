"""Kinds of paths as a person types them: `<path>-<space>`, such as `linear-factor`, from what is registered."""

from __future__ import annotations

from dataclasses import dataclass

from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.params.spaces import get_space, space_names
from mcanalysis.paths import Curve, Path, get_path, path_names


@dataclass(frozen=True)
class PathKind:
    """A registered path in a registered space."""

    path: str
    space: str

    @property
    def path_class(self) -> type[Path]:
        """The class registered under the path's name."""
        return get_path(self.path)

    @property
    def is_fitted(self) -> bool:
        """Whether it has bends, which are trained."""
        return issubclass(self.path_class, Curve)

    @property
    def is_of_whole_run(self) -> bool:
        """Whether it leads through all minima of a run, not from one to the next."""
        return self.path_class.through_many

    def __str__(self) -> str:
        return f"{self.path}-{self.space}"


def path_kind(name: str) -> PathKind:
    """Return the kind of path called `<path>-<space>`; raises `UnknownNameError` if there is none.

    Raises `UserError` for a path that cannot be drawn in the space.

    >>> path_kind("bezier-delta")
    PathKind(path='bezier', space='delta')
    """
    path, _, space = name.rpartition("-")
    try:
        spaces = get_path(path).spaces
        get_space(space)
    except UnknownNameError:
        raise UnknownNameError("path", name, path_kind_names()) from None
    if spaces and space not in spaces:
        raise UserError(f"Expected {path} in {' or '.join(spaces)} space, got {name}; choose {path}-{spaces[0]}.")
    return PathKind(path, space)


def path_kind_names() -> list[str]:
    """Return the names of all kinds, every registered path in every registered space that it can be drawn in.

    >>> path_kind_names()[:3]
    ['bezier-aligned', 'bezier-delta', 'bezier-factor']
    """
    return [f"{path}-{space}" for path in path_names() for space in get_path(path).spaces or space_names()]
