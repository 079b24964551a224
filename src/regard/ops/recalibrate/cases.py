"""Named inputs of `recalibrate` that tests and benchmarks both draw from."""

from collections.abc import Callable, Iterator

import torch

Arguments = Callable[[torch.dtype, str], tuple]


def cases() -> Iterator[tuple[str, Arguments]]:
    """Name and a function (dtype, device) -> the op's arguments, the big tensor first."""

    def case(
        shape: tuple[int, ...],
        *,
        kernel: int = 0,
        hidden: int = 0,
        bias: bool = True,
        faded: bool = False,
        scaled: bool = False,
        layout: str = "",
    ) -> Arguments:
        def arguments(dtype: torch.dtype, device: str) -> tuple:
            generator = torch.Generator().manual_seed(0)

            def draw(*shape: int) -> torch.Tensor:
                return torch.randn(shape, generator=generator, dtype=torch.float64)

            channels = shape[1]
            x = 1 + draw(*shape) + draw(*shape[:2], *[1] * (len(shape) - 2))  # means that are apart
            weights: list[torch.Tensor | None] = [None] * 5
            if kernel:
                weights[0] = draw(1, 1, kernel)
            else:
                weights[1], weights[3] = draw(hidden, channels) / channels**0.5, draw(channels, hidden)
                if bias:  # apart from 0, where the derivative of the hidden layer jumps
                    weights[2], weights[4] = 6 * (draw(hidden) > 0) - 2.0, draw(channels)
            strength = draw(1) if faded or scaled else None
            x = x.to(device=device, dtype=dtype)
            given = [None if t is None else t.to(device=device, dtype=dtype) for t in (*weights, strength)]
            if layout == "channels_last":
                x = x.movedim(1, -1).contiguous().movedim(-1, 1)
            elif layout == "sliced":
                x = torch.cat([x, x], dim=-1)[..., : shape[-1]]
            return x, *given, not scaled

        return arguments

    last = "channels_last"
    yield "excited", case((2, 64, 14, 14), hidden=4)
    yield "excited channels_last", case((3, 20, 7, 13), hidden=3, layout=last)
    yield "excited faded", case((2, 20, 7, 63), hidden=5, faded=True)
    yield "excited scaled channels_last", case((2, 20, 7, 13), hidden=5, scaled=True, layout=last)
    yield "excited without biases", case((2, 33, 5, 7), hidden=1, bias=False)
    yield "excited sliced", case((2, 20, 7, 13), hidden=2, layout="sliced")
    yield "excited 1x1", case((2, 8, 1, 1), hidden=2)
    yield "excited sequence", case((2, 20, 63), hidden=4)
    yield "excited volume channels_last", case((2, 20, 3, 5, 7), hidden=4, faded=True, layout=last)
    yield "convolved", case((2, 64, 14, 14), kernel=3)
    yield "convolved channels_last", case((3, 20, 7, 13), kernel=5, layout=last)
    yield "convolved faded", case((2, 20, 7, 63), kernel=3, faded=True)
    yield "convolved scaled", case((2, 20, 7, 63), kernel=1, scaled=True)
    yield "convolved wider than the channels", case((2, 2, 7, 13), kernel=5)
    yield "convolved 1x1", case((2, 8, 1, 1), kernel=3)
    yield "convolved sequence", case((2, 20, 63), kernel=3)
