"""The words for arms: the network as it is, controls, and the constant twin of a mechanism."""

from __future__ import annotations

from collections.abc import Sequence

from regard.base.errors import UserError

PLAIN, WIDER, PARAMETERS = "none", "wider", "parameters"  # the arms that are no mechanism
HOSTS = (PLAIN, WIDER, PARAMETERS)
CONSTANT = "constant"
CONTROLS = (CONSTANT, WIDER, PARAMETERS)


def twin(arm: str) -> str:
    """The name of an arm's constant twin.

    Example:
        >>> twin("cbam[squeeze=max]")
        'constant[cbam[squeeze=max]]'
    """
    return f"{CONSTANT}[{arm}]"


def twinned(arm: str) -> str | None:
    """Whose constant twin an arm is; None for one that is none.

    Example:
        >>> twinned("constant[se]"), twinned("se")
        ('se', None)
    """
    inside = arm.removeprefix(f"{CONSTANT}[")
    return inside[:-1] if inside != arm and inside.endswith("]") else None


def mechanisms(arms: Sequence[str]) -> list[str]:
    """Those of the arms that are mechanisms: no network without any, no control, no twin."""
    return [arm for arm in arms if arm not in HOSTS and not twinned(arm)]


def controls(asked: str | Sequence[str] | None) -> tuple[str, ...]:
    """The controls that are asked for, a list or words joined by commas, in their one order.

    Raises:
        UserError: there is no such control.
    """
    words = asked.split(",") if isinstance(asked, str) else asked or ()
    chosen = {word.strip() for word in words}
    if unknown := chosen - set(CONTROLS):
        raise UserError(
            f"there is no control={min(unknown)!r}: the controls are {', '.join(CONTROLS)}, one or several of them"
        )
    return tuple(control for control in CONTROLS if control in chosen)


def refuse_names(arm: str) -> None:
    """Refuse a control that is asked for as if it were a mechanism."""
    if arm in (WIDER, PARAMETERS):
        raise UserError(f"{arm!r} is no mechanism: ask for it with --control {arm}")
    if twinned(arm):
        raise UserError(f"{arm!r} is the twin of an arm: ask for {twinned(arm)} with --control {CONSTANT}")
