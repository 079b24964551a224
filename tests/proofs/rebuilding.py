"""The table of tools in docs/frameworks.md: what becomes of attention in a network that a tool rebuilds or wraps.

`make tools` writes it, with what it needs beside the environment.
"""

from __future__ import annotations

import copy
import io
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torchvision.models.resnet import BasicBlock

import regard
from regard.base.files import write_text

PAGE = Path(__file__).parents[2] / "docs" / "frameworks.md"
BEGIN, END = "<!-- made by make tools -->\n", "<!-- made up to here -->\n"
PLACES = {"a norm": "branches", "a block": "blocks"}
KEPT, LOST = "kept", "LOST"

Tool = Callable[[nn.Module, Tensor], Callable[[Tensor], Tensor]]
TOOLS: dict[str, Tool] = {}
NEEDS: dict[str, str] = {}  # a package
SAID: dict[str, str] = {}  # what is written of a tool beside its outcome


def tool(words: str, *, needs: str = "regard", note: str = "") -> Callable[[Tool], Tool]:
    def keep(function: Tool) -> Tool:
        TOOLS[words], NEEDS[words], SAID[words] = function, needs, note
        return function

    return keep


@tool("`copy.deepcopy`")
def copied(net, x):
    return copy.deepcopy(net)


@tool("`torch.save` of the whole network, and `torch.load`")
def pickled(net, x):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@tool("`torch.optim.swa_utils.AveragedModel`")
def averaged(net, x):
    return torch.optim.swa_utils.AveragedModel(net)


@tool("timm's `ModelEmaV3`")
def moving_average(net, x):
    return timm.utils.ModelEmaV3(net).module


@tool("timm's `freeze` of the stages")
def frozen(net, x):
    timm.utils.freeze(net, ["layer1", "layer2", "layer3", "layer4"])
    return net


@tool("`SyncBatchNorm.convert_sync_batchnorm`")
def synchronised(net, x):
    return nn.SyncBatchNorm.convert_sync_batchnorm(net).eval()


@tool("`torch.fx.symbolic_trace`", note="attention at a block is one node of the graph")
def traced(net, x):
    return torch.fx.symbolic_trace(net)


@tool("`torch.fx.experimental.optimization.fuse`", note="a layer at which attention stands is not folded")
def folded(net, x):
    from torch.fx.experimental.optimization import fuse

    return fuse(net)


@tool("`prepare_fx`, `convert_fx` (int8)", note="a layer at which attention stands stays in float32, as attention does")
def quantised(net, x):
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    ready = prepare_fx(net, get_default_qconfig_mapping("fbgemm"), (x,))
    ready(x)
    return convert_fx(ready)


@tool("`torch.ao.quantization.fuse_modules`", note="fold first, then attach")
def folded_by_name(net, x):
    pairs = [[f"layer{i}.0.conv2", f"layer{i}.0.bn2"] for i in (1, 2, 3, 4)]
    return torch.ao.quantization.fuse_modules(net, pairs)


@tool("`torch.ao.quantization.quantize_dynamic` (int8)", note="also the layers of the attention are quantised")
def quantised_dynamically(net, x):
    return torch.ao.quantization.quantize_dynamic(net, {nn.Linear})


@tool("`torch.nn.utils.prune` of every convolution")
def pruned(net, x):
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            prune.l1_unstructured(module, "weight", 0.01)
    return net


@tool("`parametrizations.weight_norm` of every convolution and linear layer")
def parametrised(net, x):
    for module in list(net.modules()):
        if type(module) in (nn.Conv2d, nn.Linear):
            parametrizations.weight_norm(module)
    return net


@tool("`apply_activation_checkpointing` of the blocks")
def checkpointed(net, x):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

    apply_activation_checkpointing(net, check_fn=lambda module: type(module).__name__ == "BasicBlock")
    return net


@tool("weights made under `torch.inference_mode`")
def inferred(net, x):
    with torch.inference_mode():
        made = copy.deepcopy(net)
        return lambda x: made(x).clone()


@tool("a batch of no images")
def empty(net, x):
    def call(x):
        assert net(x[:0]).shape == (0, 5)
        return net(x)

    return call


@tool("`torch.jit.trace`, with its check")
def jitted(net, x):
    return torch.jit.trace(net, x)


@tool("`torch.jit.script`", note="trace, compile or export instead")
def scripted(net, x):
    return torch.jit.script(net)


@tool("`torch.export.export`")
def exported(net, x):
    return torch.export.export(net, (x,)).module()


@tool("`torch.onnx.export(dynamo=False)`")
def onnx(net, x):
    import onnxruntime

    file = io.BytesIO()
    torch.onnx.export(net, (x,), file, dynamo=False)
    session = onnxruntime.InferenceSession(file.getvalue())
    return lambda x: torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@tool("torchao's `quantize_` (int8 weights)", needs="torchao")
def quantised_weights(net, x):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(net, Int8WeightOnlyConfig())
    return net


@tool("`accelerate.cpu_offload`", needs="accelerate")
def offloaded(net, x):
    from accelerate import cpu_offload

    return cpu_offload(net, torch.device("cpu"))


@tool("PEFT's LoRA at every convolution and linear layer", needs="peft")
def adapted(net, x):
    from peft import LoraConfig, inject_adapter_in_model

    names = [name for name, module in net.named_modules() if type(module) in (nn.Conv2d, nn.Linear)]
    return inject_adapter_in_model(LoraConfig(target_modules=names), net).eval()


@tool("PEFT's `modules_to_save` with the head", needs="peft")
def saved_apart(net, x):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(net, LoraConfig(target_modules=["conv1"], modules_to_save=["fc"])).eval()


def attended(at: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """A network with attention that matters, the same without, and images."""
    torch.manual_seed(0)
    net = torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5)
    x = torch.randn(4, 3, 48, 48)
    net(x)  # norms that have seen something
    net.eval()
    attached = regard.attach(net, "cbam", at=at, example=x, start="paper")
    for parameter in attached.parameters():
        nn.init.normal_(parameter, std=0.5)
    plain = copy.deepcopy(net)
    regard.attached(plain)[0].remove()
    return net, plain, x


def outcome(words: str, at: str) -> str:
    """`KEPT`, `LOST`, or what was said."""
    net, plain, x = attended(at)
    with torch.no_grad():
        wanted, without = net(x), plain(x)
    quiet = io.StringIO()
    with warnings.catch_warnings(record=True) as said, redirect_stdout(quiet), redirect_stderr(quiet):
        warnings.simplefilter("always")
        try:
            made = TOOLS[words](net, x)
            with torch.no_grad():
                got = made(x)
        except Exception as error:
            return f"refused: {_brief(error)}"
    distance = lambda other: float((got - other).norm() / other.norm())  # noqa: E731
    if distance(wanted) < 0.25 * distance(without):
        return KEPT
    heard = [str(one.message) for one in said if "attention" in str(one.message)]
    return f"warns: {heard[0]}" if heard else LOST


def _brief(error: Exception) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    line = line.replace("torch.nn.modules.", "").replace("|", "\\|").removesuffix(" at")
    return line if len(line) < 180 else f"{line[:180].rsplit(' ', 1)[0]} ..."


def row(words: str) -> str:
    cells = " | ".join(outcome(words, at) for at in PLACES.values())
    return f"| {words} | {cells} | {SAID[words]} |"


def asked() -> list[str]:
    """The tools that are installed here."""
    return [words for words, needed in NEEDS.items() if find_spec(needed)]


def table() -> str:
    head = [f"| tool | {' | '.join(f'attention at {place}' for place in PLACES)} | |", f"|{'---|' * (len(PLACES) + 2)}"]
    return "\n".join([*head, *map(row, TOOLS)]) + "\n"


def main() -> None:
    missing = {NEEDS[words] for words in TOOLS if words not in asked()}
    if missing:
        sys.exit(f"not installed: {', '.join(sorted(missing))}; `make tools` installs it")
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    write_text(PAGE, f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
