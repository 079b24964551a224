"""The memory layout that networks are trained in: never one in which oneDNN damages memory."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from regard.comparison import hosts, network


@pytest.mark.parametrize(
    ("layer", "safe"),
    [
        (nn.Conv2d(4, 8, 1, 2), False),
        (nn.Conv2d(7, 8, 1, (1, 3)), False),
        (nn.Conv2d(2, 2, 1, 2, bias=False), False),
        (nn.ConvTranspose2d(16, 4, 1, 2, output_padding=1), False),
        (nn.Conv2d(1, 8, 1, 2), True),
        (nn.Conv2d(8, 8, 1, 2), True),
        (nn.Conv2d(4, 8, 1, 1), True),
        (nn.Conv2d(4, 8, 3, 2), True),
        (nn.Conv2d(4, 8, 1, 2, groups=2), True),
        (nn.ConvTranspose2d(4, 16, 1, 2), True),
    ],
)
def test_which_layers_forbid_channels_last(layer, safe):
    host = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ModuleDict({"within": layer}))
    assert (hosts.memory_format(host) == torch.channels_last) is safe


GRADIENTS = """
import sys, torch
from torch import nn
from torch.nn import functional as F
from regard.comparison import hosts, network

torch.set_num_threads(1)

class Up(nn.Module):  # transposed convolutions have the same fault the other way round
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 16, 3, 2, 1), nn.ConvTranspose2d(16, 4, 1, 2, output_padding=1)
    def forward(self, x):
        return self.up(self.down(x).relu()).mean((2, 3))

class Down(nn.Module):  # the shortcut of a residual block that halves the sides
    def __init__(self, width):
        super().__init__()
        self.stem, self.shortcut = nn.Conv2d(3, width, 3, 1, 1), nn.Conv2d(width, 2 * width, 1, 2, bias=False)
    def forward(self, x):
        return self.shortcut(self.stem(x).relu()).mean((2, 3))

def gradients(host, x, labels):
    return torch.autograd.grad(F.cross_entropy(host(x), labels), list(host.parameters()))

torch.manual_seed(0)
worst = 0.0
networks = {f"a shortcut from {w}": Down(w) for w in (2, 3, 4, 6, 8)}
networks["small_resnet"] = hosts.build("small_resnet[width=4]", 4, 3, seed=0)
networks["transposed"] = Up()
for name, host in networks.items():
    x, labels = torch.randn(8, 3, 28, 28), torch.arange(8) % 4
    with torch.backends.mkldnn.flags(enabled=False):
        true = gradients(host.double(), x.double(), labels)
    host = network.on_device(host.float(), "cpu")
    for _ in range(3):
        found = gradients(host, x.contiguous(memory_format=hosts.memory_format(host)), labels)
        for (key, _), a, b in zip(host.named_parameters(), found, true, strict=True):
            error = (a - b).abs().max() / b.abs().max().clamp_min(1e-6)
            assert error < 1e-2, f"{name} {key}: {error}"
print("every gradient is right")
"""


def test_gradients_are_right_without_avx512():
    """Where channels last is not safe, this gives wrong numbers, hangs, or dies (held to AVX2, on any x86 machine)."""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-W", "ignore", "-c", GRADIENTS]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert (ended.returncode, ended.stdout.strip()) == (0, "every gradient is right"), ended.stderr[-2000:]


def test_weights_lie_in_the_layout_that_is_asked_for():
    host = network.on_device(hosts.build("small_resnet[width=8]", 4, 3, seed=0), "cpu")
    assert host.stages[1][0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    host = network.on_device(host, "cpu", torch.contiguous_format)
    assert host.stages[1][0].conv1.weight.is_contiguous()
