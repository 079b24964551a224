"""How a user names a network: the small one of this package, timm's, torchvision's, or a function in a file."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from regard.base.errors import UserError
from regard.registry.spelling import parse

SMALL = "small_resnet"
TORCHVISION = "torchvision/"


@dataclass(frozen=True)
class Named:
    """A network as it was named; nothing is opened yet.

    Attributes:
        text: what the user wrote.
        kind: whose it is.
        name: of the network, with timm's tag where there is one; of a file, its function.
        options: of its constructor; a file has none.
        file: the user's.
    """

    text: str
    kind: Literal["small", "timm", "torchvision", "file"]
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None

    @classmethod
    def read(cls, text: str) -> Named:
        """Tell what is named.

        Raises:
            UserError: it reads like none of the four.
        """
        if re.search(r"\.py(:|$)", text):
            file, _, function = text.rpartition(":") if ":" in text else (text, "", "")
            return cls(text, "file", function, file=Path(file))
        plain = text.removeprefix(TORCHVISION)
        read = re.fullmatch(r"\s*(\w+)(\.\w+)?(\[.*\])?\s*", plain)
        if not read:
            raise UserError(
                f"cannot read the model {text!r}: give {SMALL}, a name of timm, torchvision/NAME or file.py:function"
            )
        name, options = parse(read[1] + (read[3] or ""), what="model")
        if plain != text:
            return cls(text, "torchvision", name + (read[2] or ""), options)
        return cls(text, "small" if name == SMALL else "timm", name + (read[2] or ""), options)

    @property
    def same(self) -> str:
        """What two spellings of one network have in common: a file may be named from elsewhere."""
        return f"{self.file.name}:{self.name}" if self.file else self.text

    def digest(self) -> str | None:
        """sha256 of the file's bytes; None for a network that is in no file.

        Raises:
            UserError: there is no such file.
        """
        if self.file is None:
            return None
        if not self.file.is_file():
            raise UserError(f"there is no file {self.file}")
        return hashlib.sha256(self.file.read_bytes()).hexdigest()
