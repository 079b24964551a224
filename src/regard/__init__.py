"""Visual attention for PyTorch: faithful modules, inserted into any network, compared fairly, shown in pictures."""

from typing import TYPE_CHECKING, Any

from regard import mechanisms as _mechanisms  # noqa: F401  (registers them)
from regard.errors import UserError
from regard.insertion import Attached, attach, attached, load
from regard.ops import use_impl
from regard.recording import record
from regard.registry import Info, create, info, load_official, names, register
from regard.survey import Site, sites

if TYPE_CHECKING:
    from regard.comparison.question import compare
    from regard.comparison.results import Comparison
    from regard.drawing import overlay, sheet

__version__ = "0.1.0"

# these need the extra `compare`, and load it when first asked for
_LATER = {
    "Comparison": "regard.comparison.results",
    "compare": "regard.comparison.question",
    "overlay": "regard.drawing",
    "sheet": "regard.drawing",
}

__all__ = [
    "Attached",
    "Comparison",
    "Info",
    "Site",
    "UserError",
    "attach",
    "attached",
    "compare",
    "create",
    "info",
    "load",
    "load_official",
    "names",
    "overlay",
    "record",
    "register",
    "sheet",
    "sites",
    "use_impl",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'regard' has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(_LATER[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("regard"):
            raise
        raise UserError(
            f"regard.{name} needs the package {error.name!r}: install it with pip install 'regard[compare]'"
        ) from error


def __dir__() -> list[str]:
    return sorted([*globals(), *_LATER])
