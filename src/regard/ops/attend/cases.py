"""Named inputs of `attend` that tests and benchmarks both draw from."""

from collections.abc import Callable, Iterator

import torch

Arguments = Callable[[torch.dtype, str], tuple]


def cases() -> Iterator[tuple[str, Arguments]]:
    """Name and a function (dtype, device) -> the op's arguments, the big tensor first."""

    def case(
        query: tuple[int, ...],
        key: tuple[int, ...],
        value: tuple[int, ...],
        scale: float = 1.0,
        bias: tuple[int, ...] = (),
        watched: bool = False,
    ) -> Arguments:
        def arguments(dtype: torch.dtype, device: str) -> tuple:
            generator = torch.Generator().manual_seed(0)
            drawn = [
                torch.randn(shape, generator=generator, dtype=torch.float64).to(device=device, dtype=dtype)
                for shape in (query, key, value, bias)
            ]
            return (*drawn[:3], scale, drawn[3] if bias else None, (lambda weights: weights) if watched else None)

        return arguments

    yield "map", case((2, 1, 4, 7, 9), (2, 1, 4, 7, 9), (2, 1, 20, 7, 9), 0.5)
    yield "map watched", case((2, 1, 4, 7, 9), (2, 1, 4, 7, 9), (2, 1, 20, 7, 9), 0.5, watched=True)
    yield "heads", case((2, 4, 8, 5, 6), (2, 4, 8, 5, 6), (2, 4, 8, 5, 6), 8**-0.5)
    yield "fewer keys", case((2, 2, 4, 6, 8), (2, 2, 4, 3, 4), (2, 2, 6, 3, 4))
    yield "bias", case((2, 2, 4, 7), (2, 2, 4, 5), (2, 2, 6, 5), bias=(2, 2, 7, 5))
    yield "bias watched", case((2, 2, 4, 7), (2, 2, 4, 5), (2, 2, 6, 5), bias=(2, 2, 7, 5), watched=True)
    yield "volume", case((1, 1, 4, 3, 5, 7), (1, 1, 4, 3, 5, 7), (1, 1, 6, 3, 5, 7), 0.5)
    yield "many queries", case((1, 2, 2, 13, 11), (1, 2, 2, 3, 5), (1, 2, 5, 3, 5), 0.5)
    yield "one query", case((1, 1, 4, 1, 1), (1, 1, 4, 3, 4), (1, 1, 8, 3, 4), 0.5)
