"""Where the embedded images lie: in a package of their own, which not everybody needs."""

from __future__ import annotations

from pathlib import Path

from regard.base.errors import UserError, install_images


def packaged() -> Path:
    """The file of Fashion-MNIST's images, for ``fashion`` and ``cluttered``.

    Raises:
        UserError: when the package that holds it is not installed.
    """
    try:
        from regard_images import fashion
    except ModuleNotFoundError as error:
        raise UserError(
            "the images of fashion and cluttered are a package of their own, regard-images, which is not installed: "
            f"{install_images()}"
        ) from error
    return fashion()
