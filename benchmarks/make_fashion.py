"""Make src/regard/comparison/fashion.npz: the first 10,000 training and the first 2,000 test images of Fashion-MNIST.

Usage: python benchmarks/make_fashion.py FOLDER

FOLDER holds the four `*-ubyte.gz` files as Zalando published them (Debian's package `dataset-fashion-mnist` puts them
into /usr/share/datasets/fashion-mnist). The same files always give the same bytes.
"""

import gzip
import sys
from pathlib import Path

import numpy as np

TARGET = Path(__file__).parents[1] / "src" / "regard" / "comparison" / "fashion.npz"
TAKEN = {"train": 10_000, "t10k": 2_000}


def read(path: Path) -> np.ndarray:
    """The array of a gzipped idx file of bytes: a magic number, one big-endian length per axis, the values."""
    content = gzip.decompress(path.read_bytes())
    axes = content[3]
    shape = np.frombuffer(content, ">u4", count=axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def main(folder: Path) -> None:
    images = [read(folder / f"{part}-images-idx3-ubyte.gz")[:count] for part, count in TAKEN.items()]
    labels = [read(folder / f"{part}-labels-idx1-ubyte.gz")[:count] for part, count in TAKEN.items()]
    np.savez_compressed(TARGET, images=np.concatenate(images), labels=np.concatenate(labels))
    print(f"{TARGET.name}: {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
