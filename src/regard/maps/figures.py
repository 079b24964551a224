"""What each figure of a map says to a reader who has never seen it, and from where on it is a warning."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """What one of the figures of a map says.

    Attributes:
        text: for a reader who has never seen it.
        most, least: at which, and beyond, a reader is warned.
        warning: the words.
    """

    text: str
    most: float = math.inf
    least: float = -math.inf
    warning: str = ""

    def warns(self, value: float | None) -> bool:
        return value is not None and not self.least < value < self.most

    @property
    def limit(self) -> str:
        """When a reader is warned, in words; empty where never."""
        if self.warning:
            return f"{self.most:.2g} and more" if self.most < math.inf else f"{self.least:.2g} and less"
        return ""


FIGURES = {
    "spread": Figure(
        "How far a map's values lie apart, over their mean. Near 0 the map is flat.",
        least=0.02,
        warning="flat: says nothing",
    ),
    "entropy": Figure("1 is a map that is even everywhere, near 0 one that is a single place."),
    "between_images": Figure(
        "The share of the variance that is between the pictures. Near 0 every picture has the same map.",
        least=0.01,
        warning="the same for every image",
    ),
    "by_class": Figure(
        "The share of the variance between pictures that is between their predicted classes; 0 is chance. Only where "
        "some pictures share a class."
    ),
    "edges": Figure(
        "Rank correlation with the strength of the picture's edges. Near 1 the map shows the picture, not evidence.",
        most=0.7,
        warning="follows edges, not the class",
    ),
    "random_weights": Figure(
        "Cascading weight randomisation (Adebayo et al. 2018): rank correlation with the map of the same network after "
        "all its weights were randomised. Near 1 nothing in the map was learnt. The curve goes layer by layer, from "
        "the output to the input.",
        most=0.8,
        warning="the same with random weights: shows the picture, not what was learnt",
    ),
    "matters": Figure(
        "Deletion and insertion (Petsiuk et al. 2018): pixels are blurred, or alone kept sharp, in the order of the "
        "map, and the probability of the class is followed. The figure is the area between the insertion and the "
        "deletion curve, less the same for pixels in random order: the higher, the more the network needs what the map "
        "shows.",
        least=0,
        warning="removing these regions hurts no more than removing random ones",
    ),
    "pointing": Figure("The pointing game: how often the highest value lies on the object."),
    "on_object": Figure("The share of the map that lies on the object; an even map has the object's area there."),
    "object_area": Figure("The object's share of the picture."),
}
