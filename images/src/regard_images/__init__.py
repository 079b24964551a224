"""The images of `regard compare --data fashion` and `--data cluttered`, and nothing else."""

from pathlib import Path


def fashion() -> Path:
    """The first 10,000 training images and all 10,000 test images of Fashion-MNIST.

    Returns:
        A file of LZMA: the pixels of all images (20,000 x 28 x 28 bytes), then a byte for the label of each. Its
        licence, `fashion.LICENSE`, lies beside it.
    """
    return Path(__file__).with_name("fashion.xz")
