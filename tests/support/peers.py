"""The same mechanisms in other libraries: how they are built, and what they call the authors' weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Peer:
    """One module of another library.

    Attributes:
        library, place: where it is, e.g. "timm", "timm.layers.SEModule".
        name: the mechanism it says it is.
        build: from channels to the module, with the library's defaults.
        key: golden key of the authors' numbers, or None where it takes none of them.
        fit: from the class, channels and the authors' arguments to the module that should compute their function; None
            where it has nothing like them.
        names: the authors' prefixes -> its own.
    """

    library: str
    place: str
    name: str
    build: Callable[[Any, int], nn.Module] = lambda kind, channels: kind(channels)
    key: str | None = None
    fit: Callable[..., nn.Module] = lambda kind, channels, **args: kind(channels)
    names: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> Any:
        module, _, name = self.place.rpartition(".")
        return getattr(import_module(module), name)

    @property
    def package(self) -> str:
        return {"fightingcv": "fightingcv-attention"}.get(self.library, self.library)


def timm(name: str, place: str, **others: Any) -> Peer:
    return Peer("timm", f"timm.layers.{place}", name, **others)


def fightingcv(name: str, place: str, **others: Any) -> Peer:
    return Peer("fightingcv", f"fightingcv_attention.attention.{place}", name, **others)


class Again(nn.Module):
    """One module, several times."""

    def __init__(self, module: nn.Module, times: int) -> None:
        super().__init__()
        self.module, self.times = module, times

    def forward(self, x: Any) -> Any:
        for _ in range(self.times):
            x = self.module(x)
        return x


def without_channels(kind: Any, channels: int) -> nn.Module:
    return kind()


PEERS = [
    timm(
        "se", "squeeze_excite.SEModule", key="se", names={"fc.0": "fc1", "fc.2": "fc2"},
        fit=lambda kind, c, channel, reduction: kind(c, rd_channels=c // reduction),
    ),
    timm("eca", "eca.EcaModule", key="eca", fit=lambda kind, c, channel, k_size: kind(kernel_size=k_size)),
    timm(
        "cbam", "cbam.CbamModule", key="cbam",
        fit=lambda kind, c, gate_channels, reduction_ratio: kind(c, rd_channels=c // reduction_ratio, mlp_bias=True),
        names={"ChannelGate.mlp.1": "channel.fc1", "ChannelGate.mlp.3": "channel.fc2",
               "SpatialGate.spatial.conv": "spatial.conv.conv", "SpatialGate.spatial.bn": "spatial.conv.bn"},
    ),
    timm(
        "coordinate", "coord_attn.CoordAttn", key="coord_attention",
        fit=lambda kind, c, inp, oup, reduction: kind(c, rd_channels=max(8, c // reduction), se_factor=1, bias=True),
        names={"bn1": "bn1"},
    ),
    timm(
        "ge", "gather_excite.GatherExcite", key="ge_theta_minus",
        fit=lambda kind, c, channels, extent, use_mlp: kind(c, extent=extent, use_mlp=use_mlp),
    ),
    timm(
        "gc", "global_context.GlobalContext", key="gcnet",
        fit=lambda kind, c, inplanes, ratio, fusion_types=("channel_add",): kind(
            c, rd_channels=int(c * ratio), fuse_add="channel_add" in fusion_types,
            fuse_scale="channel_mul" in fusion_types),
        names={"conv_mask": "conv_attn", "channel_add_conv.0": "mlp_add.fc1", "channel_add_conv.1": "mlp_add.norm",
               "channel_add_conv.3": "mlp_add.fc2", "channel_mul_conv.0": "mlp_scale.fc1",
               "channel_mul_conv.1": "mlp_scale.norm", "channel_mul_conv.3": "mlp_scale.fc2"},
    ),
    timm(
        "non_local", "non_local_attn.NonLocalAttn", key="nonlocal_embedded_gaussian",
        fit=lambda kind, c, in_channels, sub_sample, bn_layer, dimension, inter_channels=None: (
            None if sub_sample else kind(c, use_scale=False, rd_channels=inter_channels or c // 2)),
        names={"theta": "t", "phi": "p", "W.0": "z", "W.1": "norm"},
    ),
    timm(
        "sk", "selective_kernel.SelectiveKernel", key="sk",
        build=lambda kind, c: kind(c, c),
        fit=lambda kind, c, C, groups, d: kind(c, c, split_input=False, groups=groups, rd_channels=d),
    ),
    timm(
        "local", "halo_attn.HaloAttn", key="halo",
        build=lambda kind, c: kind(c, num_heads=2),
        fit=lambda kind, c, dim, num_heads, block_size, halo_size: kind(
            c, num_heads=num_heads, block_size=block_size, halo_size=halo_size),
    ),
    Peer(
        "torchvision", "torchvision.ops.SqueezeExcitation", "se", key="se",
        build=lambda kind, c: kind(c, max(1, c // 16)), names={"fc.0": "fc1", "fc.2": "fc2"},
        fit=lambda kind, c, channel, reduction: kind(c, c // reduction),
    ),
    fightingcv(
        "se", "SEAttention.SEAttention", key="se_nobias",
        fit=lambda kind, c, channel, reduction: kind(c, reduction),
    ),
    fightingcv(
        "eca", "ECAAttention.ECAAttention", key="eca", build=without_channels,
        fit=lambda kind, c, channel, k_size: kind(k_size),
    ),
    fightingcv(
        "cbam", "CBAM.CBAMBlock", key="cbam", build=lambda kind, c: kind(c, kernel_size=7),
        fit=lambda kind, c, gate_channels, reduction_ratio: kind(c, reduction_ratio, 7),
        names={"ChannelGate.mlp.1": "ca.se.0", "ChannelGate.mlp.3": "ca.se.2", "SpatialGate.spatial.conv": "sa.conv"},
    ),
    fightingcv("bam", "BAM.BAMBlock", key="bam", fit=lambda kind, c, gate_channel: kind(c)),
    fightingcv(
        "sge", "SGE.SpatialGroupEnhance", key="sge", build=lambda kind, c: kind(2),
        fit=lambda kind, c, groups: kind(groups),
    ),
    fightingcv(
        "shuffle", "ShuffleAttention.ShuffleAttention", key="shuffle_attention", build=lambda kind, c: kind(c, G=1),
        fit=lambda kind, c, channel, groups: kind(c, G=groups),
    ),
    fightingcv(
        "polarized", "PolarizedSelfAttention.ParallelPolarizedSelfAttention", key="psa_parallel",
        fit=lambda kind, c, inplanes, planes: kind(c),
        names={"conv_q_right": "ch_wq", "conv_v_right": "ch_wv", "conv_up": "ch_wz", "conv_q_left": "sp_wq",
               "conv_v_left": "sp_wv"},
    ),
    fightingcv(
        "polarized", "PolarizedSelfAttention.SequentialPolarizedSelfAttention", key="psa_sequential",
        fit=lambda kind, c, inplanes, planes: kind(c),
        names={"conv_q_right": "ch_wq", "conv_v_right": "ch_wv", "conv_up": "ch_wz", "conv_q_left": "sp_wq",
               "conv_v_left": "sp_wv"},
    ),
    fightingcv(
        "coordinate", "CoordAttention.CoordAtt", key="coord_attention", build=lambda kind, c: kind(c, c),
        fit=lambda kind, c, inp, oup, reduction: kind(inp, oup, reduction),
    ),
    fightingcv(
        "criss_cross", "CrissCrossAttention.CrissCrossAttention", key="ccnet",
        fit=lambda kind, c, in_dim, recurrence: Again(kind(c), recurrence), names={"": "module."},
    ),
    fightingcv(
        "simam", "SimAM.SimAM", key="simam", fit=lambda kind, c, e_lambda: kind(c, e_lambda),
    ),
    fightingcv(
        "triplet", "TripletAttention.TripletAttention", key="triplet", build=without_channels,
        fit=lambda kind, c, no_spatial: kind(no_spatial),
    ),
    fightingcv("danet_position", "DANet.DAModule"),
    fightingcv(
        "sk", "SKAttention.SKAttention", key="sk",
        fit=lambda kind, c, C, groups, d: kind(c, [3, 5], group=groups, L=d),
    ),
    fightingcv(
        "local", "HaloAttention.HaloAttention",
        build=lambda kind, c: kind(dim=c, block_size=2, halo_size=1, dim_head=8, heads=2),
    ),
]  # fmt: skip
