"""`regard app`: the page that shows what networks attend to."""

from __future__ import annotations

from pathlib import Path

from regard.cli.output import say_loading


def app(
    *models: str,
    model: str | None = None,
    weights: Path | None = None,
    pretrained: bool = False,
    size: int | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    megabytes: float = 20,
) -> None:
    """Serve an interactive demo: drop a picture, choose network, mechanism, map and head, compare side by side.

    Only networks that are named here can be chosen there. Pictures are not kept,
    and nothing leaves this machine.

    Parameters
    ----------
    models
        small_resnet, networks of timm, torchvision/NAME, file.py:function, weights that `regard compare` kept, or its
        folder for all of its variants; a few networks of timm if none is named.
    model
        The file.py:function of weights or of a folder that `regard compare` wrote with it.
    weights
        A checkpoint of the one network that is named (safetensors, or a plain state dict).
    pretrained
        timm's pretrained weights; without them and --weights a network of timm has random ones.
    size
        Side of the pictures in pixels; by default the network's own.
    host
        The address to listen on; with another one than this machine's own, others can use the page.
    port
        Port of that address; 0 is any that is free.
    megabytes
        Size of a picture's file, at most.

    Examples
    --------
    regard app
    regard app runs/mine
    regard app vit_small_patch16_224 seresnet50 --pretrained
    regard app seresnet50 --weights seresnet50.safetensors --port 8000
    """
    say_loading()
    from regard.app.networks import offers
    from regard.app.server import serve

    offered = offers(models, own=model, weights=weights, pretrained=pretrained, size=size)
    serve(offered, host=host, port=port, megabytes=megabytes, tell=lambda address: print(address, flush=True))
