"""Named inputs of `selfgate` that tests and benchmarks both draw from."""

from collections.abc import Callable, Iterator

import torch

Arguments = Callable[[torch.dtype, str], tuple]


def cases() -> Iterator[tuple[str, Arguments]]:
    """Name and a function (dtype, device) -> the op's arguments, the big tensor first."""

    def case(
        shape: tuple[int, ...],
        period: int = 0,
        *,
        energy: float | None = None,
        shuffle: bool = False,
        faded: bool = False,
        scaled: bool = False,
        watched: bool = False,
        layout: str = "",
    ) -> Arguments:
        def arguments(dtype: torch.dtype, device: str) -> tuple:
            generator = torch.Generator().manual_seed(0)

            def draw(*shape: int) -> torch.Tensor:
                return torch.randn(shape, generator=generator, dtype=torch.float64).to(device=device, dtype=dtype)

            x = draw(*shape)
            if layout == "channels_last":
                x = x.movedim(1, -1).contiguous().movedim(-1, 1)
            elif layout == "sliced":
                x = torch.cat([x, x], dim=-1)[..., : shape[-1]]
            parameters = [draw(period) for _ in range(3)] if period else [None] * 3
            strength = draw(1) if faded or scaled else None
            watch = (lambda gate: gate.square()) if watched else None
            return x, *parameters, strength, not scaled, energy, 1e-5, shuffle, watch

        return arguments

    last = "channels_last"
    yield "energy", case((2, 20, 7, 13), energy=1e-4)
    yield "energy channels_last", case((2, 20, 7, 63), energy=1e-4, layout=last)
    yield "energy odd", case((1, 8, 33, 65), energy=1e-4)
    yield "energy large channels_last", case((1, 20, 60, 50), energy=1e-4, layout=last)
    yield "energy 1x1", case((2, 8, 1, 1), energy=1e-4)
    yield "energy faded", case((2, 20, 7, 63), energy=1e-4, faded=True)
    yield "energy faded channels_last", case((2, 20, 7, 13), energy=1e-4, faded=True, layout=last)
    yield "energy scaled", case((2, 20, 7, 63), energy=1e-4, scaled=True)
    yield "energy scaled channels_last", case((2, 20, 7, 13), energy=1e-4, scaled=True, layout=last)
    yield "energy watched", case((2, 20, 7, 13), energy=1e-4, watched=True)
    yield "energy sliced", case((2, 8, 7, 13), energy=1e-4, layout="sliced")
    yield "norm", case((2, 20, 7, 13), 20)
    yield "norm shared", case((2, 20, 7, 63), 10, faded=True)
    yield "norm 1x1", case((2, 8, 1, 1), 4)
    yield "norm shuffled", case((2, 20, 7, 13), 4, shuffle=True)
    yield "norm shuffled channels_last", case((2, 20, 7, 13), 4, shuffle=True, layout=last)
    yield "norm shuffled scaled", case((2, 20, 7, 13), 4, shuffle=True, scaled=True)
    yield "norm shuffled scaled channels_last", case((2, 20, 7, 13), 4, shuffle=True, scaled=True, layout=last)
    yield "norm shuffled wide channels_last", case((1, 72, 33, 17), 4, shuffle=True, layout=last)
    yield "energy and norm", case((2, 8, 7, 13), 8, energy=0.5)
    yield "sequence", case((2, 20, 63), 20, energy=0.5)
    yield "volume channels_last", case((2, 20, 3, 5, 7), 20, layout=last)
