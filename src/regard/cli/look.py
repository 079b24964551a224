"""`regard look`: what a network attends to in pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from regard.cli import values
from regard.cli.output import check_writable, print_json, say_loading, writing


def look(
    network: str,
    /,
    *images: str,
    model: str | None = None,
    weights: Path | None = None,
    pretrained: bool = False,
    size: int | None = None,
    mean: str | None = None,
    std: str | None = None,
    target: int | None = None,
    method: Literal["grad-cam", "grad-cam++", "hirescam", "layercam"] = "grad-cam",
    layer: str = "auto",
    query: str = "0.5,0.5",
    head: int | None = None,
    every: bool = False,
    quick: bool = False,
    masks: Path | None = None,
    blocks: bool = False,
    beside: list[str] | None = None,
    pictures: Literal["png", "svg", "webp"] | None = None,
    out: Path = Path("look"),
    json: bool = False,
) -> None:
    """Show what a network's attention looks at in pictures, and the evidence for its predictions, as a gallery.

    Attention is found by itself: regard's mechanisms, and the gates and weights of
    other networks. Each map is tested: whether it is flat, the same for every
    image, the same with random weights, or only edges, and whether removing its
    pixels hurts more than removing random ones.

    Parameters
    ----------
    network
        small_resnet, a network of timm, torchvision/NAME, file.py:function, weights that `regard compare` kept, or its
        folder for all variants side by side.
    images
        Files, folders, or patterns; nothing is fetched from the net.
    model
        The file.py:function of weights or of a folder that `regard compare` wrote with it: no file is run that only a
        folder names.
    weights
        A checkpoint of the network (safetensors, or a plain state dict); without one its weights are random.
    pretrained
        timm's pretrained weights.
    size
        Side of the pictures in pixels; by default the network's own.
    mean
        Mean by which each channel is normalised, as fractions of 1, e.g. 0.5,0.5,0.5; by default the network's own.
    std
        Standard deviation by which each channel is normalised, as --mean.
    target
        Number of the class whose evidence is shown; by default the predicted class of each picture.
    method
        How the evidence is computed.
    layer
        The layer at which the evidence is computed; auto chooses one.
    query
        Query location for attention maps: row,column as fractions of the picture's height and width.
    head
        Head of these attention maps, counted from 0; by default the mean of all heads.
    every
        Show every map of the network, not only the last of each kind and resolution.
    quick
        Leave out the checks that run the network again: cascading randomisation, and deletion and insertion curves.
    masks
        A folder with a mask of the same name for each picture, white on the object: does a map find it?
    blocks
        Draw each value of a map as a block, not interpolated.
    beside
        More networks, to be shown beside the first.
    pictures
        Also write every picture as a file of its own, and a sheet of all.
    out
        Folder for gallery.html and gallery.json.
    json
        Print the figures as JSON instead of text.

    Examples
    --------
    regard look seresnet50 photos/*.jpg --weights seresnet50.safetensors
    regard look runs/mine/weights/cbam/seed-0000.safetensors photos/
    regard look runs/mine photos/ --pictures svg
    regard look vit_small_patch16_224 cat.jpg --pretrained \\
        --query 0.4,0.6 --head 2
    regard look seresnet50 --beside resnet50 --pretrained photos/ --masks objects/
    regard look mynet.py:build photos/ --layer backbone.stage3 --json
    """
    say_loading()
    from regard.cli.progress import progress_bar
    from regard.gallery.images import expand
    from regard.gallery.looking import look as look_into
    from regard.gallery.opening import open_subjects

    channel_mean, channel_std = values.per_channel("--mean", mean), values.per_channel("--std", std)
    paths = expand(images)
    location = values.query(query)
    subjects = open_subjects(network, own=model, weights=weights, pretrained=pretrained, size=size)
    for word in beside or []:
        subjects += open_subjects(word, own=model, pretrained=pretrained, size=size)
    check_writable(out / "gallery.html")
    with progress_bar(len(paths)) as progress:
        gallery = look_into(
            subjects,
            paths,
            target=target,
            method=method,
            layer=layer,
            query=location,
            head=head,
            every=every,
            checks=not quick,
            masks=masks,
            smooth=not blocks,
            mean=channel_mean,
            std=channel_std,
            progress=progress,
        )
    with writing(out / "gallery.html"):
        page = gallery.save(out, pictures=pictures)
    if json:
        print_json(gallery.to_json())
    else:
        print(gallery)
        print(page)
