"""Tracer: a forward pass, seen function by function.

Whoever wants to know what a network does writes rules, one for each word of `regard.base.functions` that matters, and
enters a tracer with the tables of them around a call of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

from regard.base.functions import QUESTIONS, Call, word

Rule = Callable[[Call], None]
Rules = Mapping[str, Rule]
DISABLED = torch._C.DisableTorchFunction


class Tracer(TorchFunctionMode):
    """While it is entered, sees every function of torch that its thread calls, but for questions what a tensor is.

    What its rules do with tensors is seen by nobody: no other mode, and no subclass of a tensor.

    Args:
        before: word of a function -> what is done before it runs, as it may write over what it is given.
        after: word -> what is done afterwards; of several tables each may have a rule for the same word.
    """

    meet: Rule | None = None  # what is done before every function, where a subclass needs that

    def __init__(self, before: Rules, *after: Rules) -> None:
        super().__init__()
        self.before = before
        self.after = {name: [rules[name] for rules in after if name in rules] for name in set().union(*after)}

    def __exit__(self, *error: object) -> None:
        """Leave the stack of modes, also from below others: the blocks of tasks that take turns overlap."""
        above = _get_current_function_mode_stack()
        above = above[above.index(self) :]
        for _ in above:
            _pop_mode()
        for other in above[1:]:
            _push_mode(other)

    @property
    def awake(self) -> bool:
        """Whether what is called now is to be seen."""
        return True

    def follow(self, call: Call) -> None:
        """What is done after every function: that for its word."""
        for rule in self.after.get(call.word, ()):
            rule(call)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = word(function)
        if name in QUESTIONS or not self.awake:
            return function(*args, **(kwargs or {}))
        call = Call(name, function, args, kwargs or {})
        for rule in (self.meet, self.before.get(name)):
            if rule:
                with DISABLED():
                    rule(call)
        call.result = result = function(*args, **(kwargs or {}))
        with DISABLED():
            self.follow(call)
        return result
