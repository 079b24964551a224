"""`regard sites`: where in a network a mechanism can go."""

from __future__ import annotations

from regard.base.errors import UserError
from regard.cli import values
from regard.cli.options import Attachable, Layout, Model, Sites, Size
from regard.cli.output import print_json, say_loading
from regard.cli.wording import example_from


def sites(
    model: Model,
    /,
    *,
    mechanism: Attachable | None = None,
    at: Sites = "auto",
    layout: Layout | None = None,
    size: Size | None = None,
    batch: int | None = None,
    all: bool = False,
    json: bool = False,
) -> None:
    """Show where in a network mechanisms can be attached, the words that find these sites, and which are chosen.

    Columns: * if it is chosen; the module's name and class; the shape of its map,
    always written batch x channels x sides, and the layout in which the module
    holds it; how often one forward pass calls it; the words for --at that find it;
    and the reason, if nothing can be attached there.

    Parameters
    ----------
    mechanism
        Mark the sites of this mechanism, with options where wanted; without one, those of --at.
    batch
        Images in the example; by default 2.
    all
        Every module that is called, with the reason if nothing can be attached there.
    json
        Print JSON instead of a table.

    Examples
    --------
    regard sites resnet50
    regard sites mobilenetv2_100 --mechanism coordinate
    regard sites torchvision/fcn_resnet50 --at "backbone.layer4.*" --all
    regard sites mynet.py:build --size 96 --json
    """
    say_loading()
    from regard.insertion.plan import plan
    from regard.networks.models import open_model

    network, example = open_model(model, size=size, batch=batch, usual=2)
    with example_from(model):
        planned = plan(network, example, mechanism=mechanism, at=values.sites(at), layout=layout, every=all)
    if json:
        print_json(planned.to_json())
    else:
        print(planned.table if planned.refused else planned)
    if planned.refused:
        raise UserError(planned.refused)
