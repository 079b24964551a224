"""Make src/regard_images/fashion.xz: the first 10,000 training images and all 10,000 test images of Fashion-MNIST.

Usage: python images/make_fashion.py FOLDER

FOLDER holds the four `*-ubyte.gz` files as Zalando published them (Debian's package `dataset-fashion-mnist` puts them
into /usr/share/datasets/fashion-mnist). The same files and the same liblzma give the same bytes.

Of 20,000 images, in bytes: 15,680,000 as they are; 8,730,805 by zlib at level 9 (an npz); 8,041,482 by bz2; 7,941,745
as PNG; 7,552,760 by LZMA, which unpacks in half a second; 7,464,428 as lossless WebP. LZMA needs no library of
pictures, and any filter before it (differences to the left, above, to the median of both) makes its result larger.
"""

import gzip
import lzma
import sys
from pathlib import Path

import numpy as np

TARGET = Path(__file__).parent / "src" / "regard_images" / "fashion.xz"
TAKEN = {"train": 10_000, "t10k": 10_000}
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 3, "lp": 0, "pb": 0}]


def read(path: Path) -> np.ndarray:
    """The array of a gzipped idx file of bytes: a magic number, one big-endian length per axis, the values."""
    content = gzip.decompress(path.read_bytes())
    axes = content[3]
    shape = np.frombuffer(content, ">u4", count=axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def main(folder: Path) -> None:
    """The pixels of all images, then a byte for each label."""
    kinds = ("images-idx3", "labels-idx1")
    arrays = [read(folder / f"{part}-{kind}-ubyte.gz")[:count] for kind in kinds for part, count in TAKEN.items()]
    content = b"".join(array.tobytes() for array in arrays)
    TARGET.write_bytes(lzma.compress(content, format=lzma.FORMAT_XZ, filters=FILTERS))
    print(f"{TARGET.name}: {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
