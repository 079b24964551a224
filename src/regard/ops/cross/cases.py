"""Named inputs of `cross` that tests and benchmarks both draw from."""

from collections.abc import Callable, Iterator

import torch

Arguments = Callable[[torch.dtype, str], tuple]


def cases() -> Iterator[tuple[str, Arguments]]:
    """Name and a function (dtype, device) -> the op's arguments, the big tensor first."""

    def case(
        shape: tuple[int, ...],
        hidden: int,
        layout: torch.memory_format = torch.contiguous_format,
        watched: bool = False,
    ) -> Arguments:
        def arguments(dtype: torch.dtype, device: str) -> tuple:
            generator = torch.Generator().manual_seed(0)
            batch, channels, *size = shape
            drawn = [
                torch.randn(batch, width, *size, generator=generator, dtype=torch.float64)
                .to(device=device, dtype=dtype)
                .contiguous(memory_format=layout)
                for width in (hidden, hidden, channels)
            ]
            return (*drawn, (lambda weights: weights) if watched else None)

        return arguments

    yield "map", case((2, 20, 7, 9), 4)
    yield "map watched", case((2, 20, 7, 9), 4, watched=True)
    yield "map channels_last", case((2, 20, 9, 7), 4, torch.channels_last)
    yield "as wide as the values", case((1, 6, 12, 5), 6)
    yield "one row", case((2, 3, 1, 7), 2)
    yield "one column", case((2, 3, 7, 1), 2)
