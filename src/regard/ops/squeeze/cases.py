"""Named inputs of `squeeze` that tests and benchmarks both draw from."""

from collections.abc import Callable, Iterator

import torch

Arguments = Callable[[torch.dtype, str], tuple]


def cases() -> Iterator[tuple[str, Arguments]]:
    """Name and a function (dtype, device) -> the op's arguments, the big tensor first."""

    def case(
        shape: tuple[int, ...],
        *dims: tuple[int, ...],
        kinds: tuple[str, ...] = ("avg",),
        gates: tuple[tuple[int, ...], ...] = (),
        layout: str = "",
    ) -> Arguments:
        def arguments(dtype: torch.dtype, device: str) -> tuple:
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(shape, generator=generator, dtype=torch.float64)
            # powers of two: the same maxima in every dtype
            drawn = [2.0 ** torch.randint(-1, 2, gate, generator=generator).double() for gate in gates]
            x = x.to(device=device, dtype=dtype)
            if layout == "channels_last":
                x = x.contiguous(memory_format=torch.channels_last)
            elif layout == "sliced":
                x = torch.cat([x, x], dim=-1)[..., : shape[-1]]
            elif layout == "ties":
                x = x.round()
            return x, dims, kinds, tuple(gate.to(device=device, dtype=dtype) for gate in drawn)

        return arguments

    both, last = ("avg", "max"), "channels_last"
    small, channel, pixel = (2, 20, 7, 13), (2, 20, 1, 1), (2, 1, 7, 13)
    yield "channel", case((2, 64, 14, 14), (2, 3))
    yield "channel max", case(small, (2, 3), kinds=both)
    yield "channel all", case(small, (2, 3), kinds=("avg", "max", "lp", "lse"))
    yield "channel var", case(small, (2, 3), kinds=("avg", "var"))
    yield "channel var channels_last", case(small, (2, 3), kinds=("var", "lp", "max"), layout=last)
    yield "channel large", case((1, 3, 90, 70), (2, 3), kinds=("sum", "max", "var"))
    yield "channel channels_last", case(small, (2, 3), kinds=both, layout=last)
    yield "channel sliced", case(small, (2, 3), kinds=both, layout="sliced")
    yield "channel ties", case((2, 20, 7, 63), (2, 3), kinds=("max",), layout="ties")
    yield "channel 1x1", case((1, 8, 1, 1), (2, 3), kinds=both)
    yield "channel gated", case(small, (2, 3), kinds=("sum", "max"), gates=(pixel,))
    yield "spatial", case(small, (1,), kinds=("max", "avg"))
    yield "spatial ties", case(small, (1,), kinds=("max", "avg"), layout="ties")
    yield "spatial gated", case(small, (1,), kinds=("max", "avg"), gates=(channel,))
    yield "spatial gated channels_last", case(small, (1,), kinds=("max", "avg"), gates=(channel,), layout=last)
    yield "spatial gated twice", case(small, (1,), kinds=("max", "sum"), gates=(channel, pixel))
    yield "spatial gated by one weight for all", case(small, (1,), kinds=("sum",), gates=((1, 20, 1, 1),))
    yield "rows", case((2, 20, 7, 63), (3,))
    yield "columns", case((2, 20, 7, 63), (2,), layout=last)
    yield "rows and columns", case(small, (3,), (2,))
    yield "rows and columns channels_last", case(small, (3,), (2,), layout=last)
    yield "three axes", case((2, 20, 33, 65), (2,), (3,), (1,), kinds=("max", "avg"))
    yield "three axes channels_last", case(small, (2,), (3,), (1,), kinds=("max", "avg"), layout=last)
    yield "sequence", case((2, 20, 63), (2,), kinds=both)
    yield "volume", case((2, 20, 3, 5, 7), (2, 3, 4), kinds=both)
    yield "volume axes", case((2, 6, 3, 5, 7), (3, 4), (2, 4), (2, 3))
