"""Visual attention for PyTorch: faithful modules, inserted into any network, compared fairly, shown in pictures.

Every public name is loaded when it is first asked for, so that ``import regard`` and ``regard --help`` cost nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regard import ops
    from regard.base.errors import UserError
    from regard.comparison.compare import compare
    from regard.comparison.results import Comparison
    from regard.costs.advice import Advice
    from regard.costs.advising import advise
    from regard.gallery.looking import look
    from regard.gallery.page import Gallery
    from regard.gallery.subjects import Subject
    from regard.insertion.attach import attach
    from regard.insertion.attachment import Attached, attached
    from regard.insertion.load import load
    from regard.insertion.site import Site, sites
    from regard.maps.meaning import Meaning, judge
    from regard.maps.recording import Map, record
    from regard.maps.rollout import rollout
    from regard.maps.saliency import Saliency, explain
    from regard.maps.targets import box, pixel
    from regard.networks.models import open_model
    from regard.ops import use_impl
    from regard.pictures.drawing import draw
    from regard.pictures.overlay import overlay
    from regard.pictures.sheet import sheet
    from regard.registry.building import create
    from regard.registry.info import Info
    from regard.registry.official import load_official
    from regard.registry.registration import info, names, register

__version__ = "0.1.0"

__all__ = [
    "Advice",
    "Attached",
    "Comparison",
    "Gallery",
    "Info",
    "Map",
    "Meaning",
    "Saliency",
    "Site",
    "Subject",
    "UserError",
    "advise",
    "attach",
    "attached",
    "box",
    "compare",
    "create",
    "draw",
    "explain",
    "info",
    "judge",
    "load",
    "load_official",
    "look",
    "names",
    "open_model",
    "ops",
    "overlay",
    "pixel",
    "record",
    "register",
    "rollout",
    "sheet",
    "sites",
    "use_impl",
]

_ROOMS = {
    "regard.costs.advice": ("Advice",),
    "regard.costs.advising": ("advise",),
    "regard.comparison.compare": ("compare",),
    "regard.comparison.results": ("Comparison",),
    "regard.pictures.drawing": ("draw",),
    "regard.pictures.overlay": ("overlay",),
    "regard.pictures.sheet": ("sheet",),
    "regard.base.errors": ("UserError",),
    "regard.insertion.attach": ("attach",),
    "regard.insertion.attachment": ("Attached", "attached"),
    "regard.insertion.load": ("load",),
    "regard.gallery.looking": ("look",),
    "regard.gallery.page": ("Gallery",),
    "regard.gallery.subjects": ("Subject",),
    "regard.maps.meaning": ("Meaning", "judge"),
    "regard.networks.models": ("open_model",),
    "regard.ops": ("use_impl",),
    "regard.maps.recording": ("Map", "record"),
    "regard.registry.building": ("create",),
    "regard.registry.info": ("Info",),
    "regard.registry.official": ("load_official",),
    "regard.registry.registration": ("info", "names", "register"),
    "regard.maps.rollout": ("rollout",),
    "regard.maps.saliency": ("Saliency", "explain"),
    "regard.maps.targets": ("box", "pixel"),
    "regard.insertion.site": ("Site", "sites"),
}
_HOME = {name: room for room, held in _ROOMS.items() for name in held}


def __getattr__(name: str) -> Any:
    if name == "ops":
        return import_module("regard.ops")
    if name not in _HOME:
        raise AttributeError(f"module 'regard' has no attribute {name!r}")
    try:
        if _HOME[name].startswith("regard.registry."):
            import_module("regard.mechanisms")  # registers them
        found = getattr(import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("regard"):
            raise
        from regard.base.errors import UserError, install

        raise UserError(f"regard.{name} needs the package {error.name!r}: {install('compare')}") from error
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
