"""The gallery: one page for people, its figures for scripts, and one sheet of all pictures."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from regard.base.files import slug, whole, write_text
from regard.gallery.columns import Column
from regard.maps.figures import FIGURES
from regard.maps.gradcam import METHODS
from regard.pictures.charts import Chart
from regard.pictures.picture import Picture, data_uri
from regard.pictures.sheet import grid


@dataclass(frozen=True)
class View:
    """What one network looks at.

    Attributes:
        name: of the network.
        classes: the predicted class of each picture, in words with its probability.
        columns: of its layers, the first ones first.
        notes: what a reader must know.
        checked: on how many of the pictures the network was run again.
    """

    name: str
    classes: list[str]
    columns: list[Column]
    notes: list[str]
    checked: int = 0


@dataclass(frozen=True)
class Gallery:
    """Pictures and figures; `save` writes them.

    Attributes:
        images: names of the pictures.
        pictures: as they came, small.
        views: of each network.
        notes: what a reader must know about the pictures.
    """

    images: list[str]
    pictures: list[Image.Image] = field(repr=False)
    views: list[View]
    notes: list[str]

    @property
    def name(self) -> str:
        return " and ".join(view.name for view in self.views)

    def to_json(self) -> dict[str, Any]:
        """Everything but the pictures."""
        return {
            "images": self.images,
            "networks": [
                {
                    "model": view.name,
                    "classes": view.classes,
                    "maps": [column.to_json() for column in view.columns],
                    "notes": view.notes,
                }
                for view in self.views
            ],
            "notes": self.notes,
        }

    def sheet(self) -> Image.Image:
        """All in one picture: a row for each image, a column for each layer of each network."""
        columns = {"": self.pictures}
        for view in self.views:
            for column in view.columns:
                layer = column.name or "the network"
                layer = f"{column.kind} at {layer}" if column.kind in METHODS else layer
                name = layer if len(self.views) == 1 else f"{view.name}: {layer}"
                while name in columns:  # the same layer, once more
                    name += " "
                columns[name] = [picture.image() for picture in column.pictures]
        return grid(columns, self.images)

    def save(self, folder: str | Path, *, pictures: str | None = None) -> Path:
        """Write gallery.html, one file without anything from elsewhere, and gallery.json; gives the page's path.

        Args:
            folder: is made.
            pictures: ``"png"``, ``"svg"``, ...: also every picture as a file of its own, in pictures/, and all of them
                in sheet.png.
        """
        folder = Path(folder)
        page = _page(self)
        if pictures:
            with whole(folder / "sheet.png") as path:
                self.sheet().save(path, "PNG")
            self._save_pictures(folder / "pictures", pictures)
        write_text(folder / "gallery.json", json.dumps(self.to_json(), indent=1) + "\n")
        return write_text(folder / "gallery.html", page)

    def _save_pictures(self, folder: Path, suffix: str) -> None:
        for number, view in enumerate(self.views):
            inside = folder / (slug(view.name) if len(self.views) == 1 else f"{number}-{slug(view.name)}")
            for column in view.columns:
                for row, picture in enumerate(column.pictures):
                    image = f"{row:03}-{slug(Path(self.images[row]).stem)}"
                    picture.save(inside / f"{image}-{slug(column.name)}-{slug(column.kind)}.{suffix}")

    def __str__(self) -> str:
        rows = [f"{len(self.images)} picture{'s' * (len(self.images) != 1)}"]
        for view in self.views:
            rows.append(view.name)
            for column in view.columns:
                said = "; ".join(column.meaning.words) or str(column.meaning)
                rows.append(f"  {column.kind:12} {column.name or 'the network'}: {said}")
            rows += view.notes
        return "\n".join([*rows, *self.notes])


def _page(gallery: Gallery) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("regard.gallery", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    columns = [column for view in gallery.views for column in view.columns]
    return environment.get_template("gallery.html.jinja").render(
        gallery=gallery,
        uri=_uri,
        figures=FIGURES,
        shared=[note for note in gallery.views[0].notes if all(note in view.notes for view in gallery.views)],
        checked=max(view.checked for view in gallery.views),
        charts=any(column.charts for column in columns),
        given={name for column in columns for name in column.meaning.figures},
    )


def _uri(picture: Image.Image | Picture) -> str:
    """A picture inside the page."""
    if isinstance(picture, Chart):
        return "data:image/svg+xml;base64," + base64.b64encode(picture.svg().encode()).decode()
    return data_uri(picture if isinstance(picture, Image.Image) else picture.image())
