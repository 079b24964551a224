"""Named inputs of `excite` that tests and benchmarks both draw from."""

from collections.abc import Callable, Iterator

import torch

Arguments = Callable[[torch.dtype, str], tuple]


def cases() -> Iterator[tuple[str, Arguments]]:
    """Name and a function (dtype, device) -> the op's arguments."""

    def case(batch: int, channels: int, hidden: int, *, inputs: int = 1, bias: bool = True) -> Arguments:
        def arguments(dtype: torch.dtype, device: str) -> tuple:
            generator = torch.Generator().manual_seed(0)

            def drawn(*shape: int) -> torch.Tensor:
                values = torch.randn(shape, generator=generator, dtype=torch.float64)
                # apart from 0, where the derivative of the hidden layer jumps
                return (values / shape[-1] ** 0.5 * 2).to(device=device, dtype=dtype)

            squeezed = tuple(drawn(batch, channels) for _ in range(inputs))
            biases = (drawn(hidden), drawn(channels)) if bias else (None, None)
            return squeezed, drawn(hidden, channels), biases[0], drawn(channels, hidden), biases[1]

        return arguments

    yield "one", case(2, 64, 4)
    yield "two", case(3, 40, 5, inputs=2)
    yield "no biases", case(2, 33, 1, bias=False)
    yield "many images", case(19, 70, 17)
    yield "wide", case(8, 512, 128, inputs=2)
    yield "one channel", case(1, 1, 1)
