"""Named inputs of `gate` that tests and benchmarks both draw from."""

from collections.abc import Callable, Iterator

import torch

Arguments = Callable[[torch.dtype, str], tuple]


def cases() -> Iterator[tuple[str, Arguments]]:
    """Name and a function (dtype, device) -> the op's arguments, the big tensor first."""

    def case(
        shape: tuple[int, ...],
        *gates: tuple[int, ...],
        layout: str = "",
        mean: bool = False,
        shift: tuple[int, ...] | None = None,
    ) -> Arguments:
        def arguments(dtype: torch.dtype, device: str) -> tuple:
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(shape, generator=generator, dtype=torch.float64).to(device=device, dtype=dtype)
            if layout == "channels_last":
                x = x.contiguous(memory_format=torch.channels_last)
            elif layout == "sliced":
                x = torch.cat([x, x], dim=-1)[..., : shape[-1]]
            wanted = (*gates, *(() if shift is None else (shift,)))
            drawn = [torch.rand(small, generator=generator, dtype=torch.float64) for small in wanted]
            smalls = tuple(small.to(device=device, dtype=dtype) for small in drawn)
            return x, smalls[: len(gates)], mean, None if shift is None else smalls[-1]

        return arguments

    yield "channel", case((2, 64, 14, 14), (2, 64, 1, 1))
    yield "channel odd", case((2, 20, 7, 63), (2, 20, 1, 1))
    yield "channel channels_last", case((2, 20, 7, 13), (2, 20, 1, 1), layout="channels_last")
    yield "channel sliced", case((2, 20, 7, 13), (2, 20, 1, 1), layout="sliced")
    yield "spatial", case((2, 20, 7, 13), (2, 1, 7, 13))
    yield "spatial channels_last", case((2, 20, 7, 13), (2, 1, 7, 13), layout="channels_last")
    yield "channel and spatial", case((2, 20, 7, 13), (2, 20, 1, 1), (2, 1, 7, 13))
    yield "rows and columns", case((2, 20, 7, 13), (2, 20, 7, 1), (2, 20, 1, 13))
    yield "rows and columns channels_last", case((2, 20, 7, 13), (2, 20, 7, 1), (2, 20, 1, 13), layout="channels_last")
    yield "1x1", case((1, 8, 1, 1), (1, 8, 1, 1))
    yield "sequence", case((2, 20, 63), (2, 20, 1))
    yield "volume", case((2, 20, 3, 5, 7), (2, 20, 1, 1, 1))
    yield "one gate for all images", case((2, 20, 7, 13), (1, 20, 1, 1))
    yield "mean of three", case((2, 20, 7, 13), (2, 20, 1, 13), (2, 20, 7, 1), (2, 1, 7, 13), mean=True)
    yield (
        "mean of three channels_last",
        case((2, 20, 7, 13), (2, 20, 1, 13), (2, 20, 7, 1), (2, 1, 7, 13), mean=True, layout="channels_last"),
    )
    yield "shift", case((2, 20, 7, 13), shift=(2, 20, 1, 1))
    yield "gate and shift", case((2, 20, 7, 13), (2, 20, 1, 1), shift=(2, 20, 1, 1), layout="channels_last")
    yield "element", case((2, 20, 7, 13), (2, 20, 7, 13))
    yield "large", case((1, 20, 90, 70), (1, 20, 1, 1), (1, 1, 90, 70))
