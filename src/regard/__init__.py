"""Visual attention for PyTorch: faithful modules, inserted into any network, compared fairly, shown in pictures."""

from regard import mechanisms as mechanisms
from regard.errors import UserError
from regard.ops import use_impl
from regard.registry import Info, create, info, load_official, names, register

__version__ = "0.1.0"
