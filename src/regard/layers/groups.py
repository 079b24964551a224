"""Channels in groups, where the authors' number does not fit every width. Loads no torch."""

from regard.base.errors import UserError

AUTHORS = 64
LEAST = 4  # channels of a group in the narrowest layer that the authors have groups in


def choose(mechanism: str, channels: int, groups: int | None) -> int:
    """So many groups, or for None the largest number up to the authors' 64 that fits and leaves each group 4 channels.

    Raises:
        UserError: the channels do not divide into so many.
    """
    fit = [number for number in range(1, channels + 1) if channels % number == 0]
    if groups is None:
        return most(fit, channels)
    if groups not in fit:
        raise UserError(
            f"{mechanism}: {channels} channels do not divide into {groups} groups: the groups that fit are "
            f"{', '.join(map(str, fit))}"
        )
    return groups


def most(fit: list[int], channels: int) -> int:
    """Of the numbers that fit the largest up to the authors' that leaves each group enough channels, else the least."""
    return max((number for number in fit if number <= AUTHORS and channels // number >= LEAST), default=min(fit))
