"""Threads and tasks side by side: nobody's call changes another's."""

import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import nn

import regard
from regard.layers.tap import taps
from regard.networks.replica import replica

ATTACHABLE = [name for name in regard.names() if regard.info(name).place]
X = [torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(number)) for number in range(2)]


def network():
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)]
    return nn.Sequential(*parts, nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


@pytest.fixture(autouse=True)
def often():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def side_by_side(*works):
    with ThreadPoolExecutor(len(works)) as pool:
        futures = [pool.submit(work) for work in works]
    # who only waited in vain for another is not the one to be heard
    failed = [error for future in futures if (error := future.exception())]
    for error in sorted(failed, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [future.result() for future in futures]


@pytest.mark.parametrize("name", ATTACHABLE)
def test_threads_that_call_one_model_get_their_own_answers(name):
    """Also where one records; they meet in the middle of every call."""
    net = network().eval()
    site = "2" if regard.info(name).beside else "1"
    options = {"frames": 2} if name == "tam" else {}
    regard.attach(net, name, at=site, example=X[0], start="paper", seed=0, **options)
    with torch.no_grad():
        want = [net(x) for x in X]
        with regard.record(net) as maps:
            net(X[1])
    barrier = threading.Barrier(2)

    def meet(*_):
        barrier.wait(20)

    handles = [net[at].register_forward_hook(meet) for at in (0, 1, 3)]

    def call(number):
        with torch.no_grad():
            return [net(X[number]) for _ in range(3)]

    def recorded(number):
        with torch.no_grad(), regard.record(net) as seen:
            answers = [net(X[number]) for _ in range(3)]
        return answers, seen

    plain, (answers, seen) = side_by_side(partial(call, 0), partial(recorded, 1))
    assert all(torch.equal(y, want[0]) for y in plain), "bit-equal: nobody watches this thread"
    assert all(torch.allclose(y, want[1], rtol=1e-4, atol=1e-6) for y in answers)
    assert [found.name for found in seen] == 3 * [found.name for found in maps]
    for found, alone in zip(seen, 3 * maps, strict=True):
        assert torch.allclose(found.value, alone.value, rtol=1e-4, atol=1e-6)
    for handle in handles:
        handle.remove()
    assert not any(tap._forward_hooks for _, tap in taps(net))


def test_recordings_side_by_side_do_not_mix():
    net = network().eval()
    regard.attach(net, "cbam", at="1", example=X[0], start="paper", seed=0)
    regard.attach(net, "qkv", at="4", example=X[0], start="paper", seed=0)

    def look(number):
        found = []
        for turn in range(20):
            with torch.no_grad(), regard.record(net, queries=[(0.5, 0.5)] if turn % 2 else None) as maps:
                net(X[number])
            found.append([(seen.name, seen.value) for seen in maps])
        return found

    want = [look(number) for number in range(2)]
    for got, alone in zip(side_by_side(partial(look, 0), partial(look, 1)), want, strict=True):
        for maps, single in zip(got, alone, strict=True):
            assert [name for name, _ in maps] == [name for name, _ in single]
            assert all(torch.allclose(a, b, rtol=1e-4) for (_, a), (_, b) in zip(maps, single, strict=True))


def test_what_trains_beside_a_look_does_not_know_of_it():
    """Weights, statistics and modes are those of a training alone."""

    def trained(net, beside=None):
        net.train()
        optimiser, modes = torch.optim.SGD(net.parameters(), lr=0.1), set()
        own = id(net[4])
        net[4].register_forward_hook(lambda module, *_: modes.add((module.training, id(module) == own)))
        for turn in range(9):
            if beside:
                beside.wait(20)
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(X[turn % 2]), torch.tensor([0, 1])).backward()
            optimiser.step()
        return modes

    def attached():
        net = network()
        regard.attach(net, "cbam", at="1", example=X[0], seed=0)
        return net

    alone, net = attached(), attached()
    trained(alone)
    barrier = threading.Barrier(2)

    def look():
        for turn in range(9):
            barrier.wait(20)
            if turn % 3 == 0:
                regard.explain(net, X[0], 1)
            elif turn % 3 == 1:
                regard.sites(net, example=X[0])
            else:
                with regard.record(net) as maps:
                    assert maps == []

    modes, _ = side_by_side(partial(trained, net, barrier), look)
    assert (False, True) not in modes
    assert (True, True) in modes
    assert all(module.training for module in net.modules())
    for (key, tensor), other in zip(net.state_dict().items(), alone.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), key


def test_a_step_between_the_passes_of_an_explanation():
    net = network().eval()
    want = regard.explain(net, X[0], 1).value

    def stepped(output):
        with torch.no_grad():
            for weight in net.parameters():
                weight.mul_(2)
        return output[:, 1]

    assert torch.equal(regard.explain(net, X[0], stepped).value, want)


def test_tasks_that_record_in_turns():
    net = network().eval()
    regard.attach(net, "se", at="1", example=X[0], start="paper", seed=0)

    async def look(number, turns):
        with regard.record(net) as maps:
            for _ in range(turns):
                await asyncio.sleep(0)
                net(X[number])
        return maps

    async def both():
        return await asyncio.gather(look(0, 2), look(1, 4))

    with torch.no_grad():  # torch's own, which belongs to the thread
        with regard.record(net) as maps:
            net(X[0]), net(X[1])
        first, second = asyncio.run(both())
    assert [len(first), len(second)] == [2, 4]
    assert all(torch.allclose(seen.value, maps[0].value) for seen in first)
    assert all(torch.allclose(seen.value, maps[1].value) for seen in second)
    assert torch.overrides._get_current_function_mode_stack() == []


class Helper:
    def __init__(self, module):
        self.module, self.calls = module, 0

    def __call__(self, x):
        self.calls += 1
        return self.module(x)


class Tangled(nn.Module):
    """Reaches its parts by every way but the usual one."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)) for _ in range(6))
        self.register_buffer("count", torch.zeros(()))
        self.alias = self.parts[0]
        plain = self.parts[1]
        self.by = {"list": [self.parts[2]], "partial": partial(self.run, self.parts[3])}
        self.closure = lambda x: plain(x)
        self.helper = Helper(self.parts[4])
        self.method = self.parts[5].forward
        self.parts[0].register_forward_hook(self.counted)
        self.tied = self.parts[0][0].weight

    def run(self, part, x):
        assert part in [*self.parts]
        return part(x)

    def counted(self, module, args, y):
        assert module is self.alias
        self.count += 1

    def forward(self, x):
        x = self.closure(self.alias(x))
        x = self.by["partial"](self.by["list"][0](x))
        return self.method(self.helper(x)) @ self.tied


def test_a_replica_shares_the_weights_and_nothing_else():
    net = Tangled().train()
    state = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    copy = replica(net)
    assert type(copy) is Tangled
    assert all(a is b for a, b in zip(copy.parameters(), net.parameters(), strict=True))
    assert not {id(module) for module in copy.modules()} & {id(module) for module in net.modules()}
    assert [name for name, _ in copy.named_modules()] == [name for name, _ in net.named_modules()]
    ran = []
    for module in net.modules():
        module.register_forward_hook(lambda *_: ran.append("the model's own"))
    for module in copy.modules():
        assert not module.training
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda module, *_: ran.append(module.training))
    x = torch.randn(2, 4)
    y = copy(x)
    assert ran == 6 * [False], "all parts, all of them copies"
    assert torch.equal(y, replica(net)(x))
    assert (int(copy.count), int(net.count), net.helper.calls) == (1, 0, 0)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(tensor, state[key]) for key, tensor in net.state_dict().items())
    copy.parts[0][0].weight.data.add_(1)
    assert not torch.equal(net.parts[0][0].weight, state["parts.0.0.weight"])
