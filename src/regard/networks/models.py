"""Networks by a word, for every command: the small one, timm's, torchvision's, or what a user's function returns."""

from __future__ import annotations

import hashlib
import inspect
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from traceback import extract_tb
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from regard.base.errors import UserError, near
from regard.networks.borrowing import same_randomness
from regard.networks.small_resnet import SmallResNet
from regard.registry.named import SMALL, Named

SIDE = 224  # pixels, where neither the user nor the network says another size
SMALL_SIDE = 64  # of the small network's images
FRAMES = 16  # of a clip
# what a function in a user's file calls the number of classes and of the images' channels, and what it is told where
# nobody knows them
CLASSES = ("num_classes", "classes", "n_classes", "nclasses", "n_class", "num_labels"), 1000
CHANNELS = ("in_chans", "in_channels", "channels", "num_channels", "n_channels", "input_channels"), 3
LARGEST = 2**16  # number in an option

# What a network of timm or torchvision may be given, by the kind of its value. A text that names a network may come
# from a stranger's file, and their constructors also take paths, addresses and configurations.
WHOLE = """base_width bn_size cardinality depth embed_dim group_width groups growth_rate head_dim head_hidden_size
    img_size in_chans init_channels intermediate_size kernel_size max_size min_size num_blocks num_classes num_features
    num_heads num_init_features num_keypoints num_levels num_reg_tokens output_stride parallel_depth patch_size
    pool_size reg_tokens stem_size stem_width trainable_backbone_layers width_per_group window_size"""
NUMBER = """attention_dropout attn_drop_rate bn_eps bn_momentum bottle_ratio box_nms_thresh box_score_thresh
    channel_multiplier depth_multiplier detections_per_img drop_block_rate drop_path_rate drop_rate dropout
    expand_ratio expansion_ratio head_init_scale init_values layer_scale layer_scale_init_value ls_init_value
    mlp_dropout mlp_ratio nms_thresh norm_eps patch_drop_rate pos_drop_rate proj_drop_rate rope_theta score_thresh
    stochastic_depth_prob width width_factor width_mult"""
FLAG = """always_partition aux_logits aux_loss avg_down bn_tf class_token conv_bias conv_mlp distillation distilled
    dynamic_img_pad dynamic_img_size features_only final_norm fix_init global_pool_norm head_bias head_norm
    head_norm_first init_weights memory_efficient no_embed_class pre_norm qk_norm qkv_bias se_from_exp
    strict_img_size swiglu_mlp transform_input use_abs_pos_emb use_fc_norm use_grn use_pos_embed use_rel_pos_bias
    use_rot_pos_emb use_shared_rel_pos_bias zero_init_last zero_init_residual"""
WORD = "act_layer aa_layer attn_layer global_pool norm_layer pad_type pool_type stem_type weight_init"
OPTIONS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(WHOLE.split(), (int,)),
    **dict.fromkeys(NUMBER.split(), (int, float)),
    **dict.fromkeys(FLAG.split(), (bool,)),
    **dict.fromkeys(WORD.split(), (str,)),
}
KINDS: dict[tuple[type, ...], str] = {
    (int,): "a whole number",
    (int, float): "a number",
    (bool,): "true or false",
    (str,): "a word",
}


def open_model(
    text: str,
    *,
    size: int | None = None,
    batch: int | None = None,
    usual: int = 8,
    pretrained: bool = False,
    device: torch.device | str = "cpu",
) -> tuple[nn.Module, Any]:
    """Build a network with random weights, and a batch for it. Nothing is downloaded unless `pretrained` is set.

    The same text gives the same weights and images every time; the global random states stay as they were.

    Args:
        text: ``"small_resnet"``; a name of timm; ``"torchvision/NAME"``, also of its segmentation, detection, video and
            optical-flow networks; each with options where wanted (``"resnet18[num_classes=5]"``, those in `OPTIONS`);
            or ``"file.py:function"``, which runs the file, under a name of its own and with what lies beside it, and
            returns a model, or a model and an example. The function is called without arguments, but for the numbers
            of classes and channels where it asks for them.
        size: side of the images in pixels; None is the network's own. A detector, which resizes its images itself, is
            told to resize them to this.
        batch: images, or clips; None is the usual number.
        usual: that number.
        pretrained: with timm's weights.
        device: of both.

    Returns:
        The model, and the example to call it with: one tensor, or a tuple of arguments.

    Raises:
        UserError: there is no such network, it cannot be built like that, the file does not give a model, or the images
            do not fit into memory.

    Example:
        >>> model, example = open_model("resnet18", size=64, batch=2)
        >>> model(example).shape
        torch.Size([2, 1000])
    """
    for word, number in {"size": size, "batch": batch}.items():
        if number is not None and number < 1:
            raise UserError(f"{word} is at least 1, got {number}")
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise UserError(f"there is no device {str(device)!r} here: take cpu, or leave it out") from error
    named = Named.read(text)
    with seeded(0):
        model, example = build(named, size=size, pretrained=pretrained)
        if example is None:
            example = _example(named, model, size, batch or usual)
        elif size or batch:
            raise UserError(f"{text} returns its own example, which size and batch do not change: leave them out")
    return model.to(device), tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, example)


def build(
    named: Named,
    *,
    classes: int | None = None,
    channels: int | None = None,
    size: int | None = None,
    pretrained: bool = False,
    widening: float = 1.0,
) -> tuple[nn.Module, Any]:
    """Build a network, with weights from torch's global generator.

    Args:
        named: which.
        classes, channels: of its output and of its images; its own where None.
        size: a network for images of one size alone is built for this one.
        pretrained: with timm's weights.
        widening: every width is multiplied by this.

    Returns:
        The model, and the example that a user's function returned with it, or None.

    Raises:
        UserError: it cannot be built like that.
    """
    if pretrained and named.kind != "timm":
        raise UserError(
            f"{named.text.partition('[')[0]} has no pretrained weights: take a model of timm, or --weights FILE"
        )
    if named.kind == "small":
        return _small(classes or 10, channels or 3, named.options, widening), None
    if named.kind == "timm":
        return _timm(named, classes, channels, size, pretrained, widening), None
    if widening != 1.0:
        raise _cannot_widen(named)
    if named.kind == "torchvision":
        return _torchvision(named, classes, channels), None
    return _own(named, classes, channels)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Every global generator starts from the seed; afterwards they are as they were."""
    with same_randomness():
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        yield


def image_size(named: Named) -> int | None:
    """The side in pixels that a network of timm or torchvision expects; None where any does."""
    if named.kind == "timm":
        if isinstance(named.options.get("img_size"), int):
            return int(named.options["img_size"])
        config = _pretrained_cfg(named.name)
        return config.input_size[-1] if config else SIDE
    if named.kind == "torchvision":
        return int(getattr(_transforms(named.name), "crop_size", [SIDE])[-1])
    return None


def pretraining(named: Named) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation of each channel that a network of timm or torchvision was trained with, as fractions of 1."""
    config = _pretrained_cfg(named.name) if named.kind == "timm" else None
    config = _transforms(named.name) if named.kind == "torchvision" else config
    return (tuple(config.mean), tuple(config.std)) if config is not None and hasattr(config, "mean") else None


def check(named: Named) -> None:
    """Raise a `UserError` where there is no such network."""
    if named.kind == "timm":
        check_timm(named.name, SMALL)
    if named.kind == "torchvision":
        _check_torchvision(named.name)
    if named.file:
        named.digest()


def _example(named: Named, model: nn.Module, size: int | None, batch: int) -> Any:
    if named.kind == "torchvision":
        return _torchvision_example(named, model, size, batch)
    if named.kind == "timm":
        config: Any = model.pretrained_cfg
        channels, side, _ = config.get("input_size") or (3, SIDE, SIDE)
        side = size or named.options.get("img_size") or side
        return _images(batch, named.options.get("in_chans", channels), side, side)
    side = size or (SMALL_SIDE if named.kind == "small" else SIDE)
    return _images(batch, 3, side, side)


def _images(*shape: int, make: Callable[..., Tensor] = torch.randn) -> Tensor:
    try:
        return make(*shape)
    except (RuntimeError, TypeError) as error:  # no memory, or more numbers than a tensor can count
        sides = " x ".join(map(str, shape))
        raise UserError(f"images of {sides} numbers do not fit into memory: take a smaller size or batch") from error


def _cannot_widen(named: Named) -> UserError:
    return UserError(f"the wider control knows {SMALL} and the ResNets of timm, not {named.text!r}: leave it out")


# --- the small one ---------------------------------------------------------------------------------------------------


def _small(classes: int, channels: int, options: Mapping[str, Any], widening: float) -> nn.Module:
    allowed = [p.name for p in inspect.signature(SmallResNet).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option, value in options.items():
        if option not in allowed:
            raise UserError(f"{SMALL} has no option {option!r}: its options are {', '.join(allowed)}")
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{SMALL}: {option} is a whole number from 1, got {value!r}")
    return SmallResNet(classes, channels, **{**options, "width": round(options.get("width", 16) * widening)})


# --- timm ------------------------------------------------------------------------------------------------------------


def _timm(
    named: Named, classes: int | None, channels: int | None, size: int | None, pretrained: bool, widening: float
) -> nn.Module:
    check_timm(named.name, SMALL)
    asked: dict[str, Any] = {"num_classes": classes, "in_chans": channels}
    asked = {option: number for option, number in asked.items() if number is not None}
    if widening != 1.0:
        from timm.models import ResNet

        plain: Any = timm_model(named.name, named.options)
        if not isinstance(plain, ResNet):
            raise _cannot_widen(named)
        first: Any = plain.layer1
        widths = [stage["num_chs"] // first[0].expansion for stage in plain.feature_info[1:]]
        asked["channels"] = tuple(max(8, round(width * widening / 8) * 8) for width in widths)
    return timm_model(named.name, _sized(named.name, size) | named.options, pretrained=pretrained, **asked)


def timm_model(name: str, options: Mapping[str, Any], *, pretrained: bool = False, **others: Any) -> nn.Module:
    """Build a network of timm.

    Args:
        name: of the network.
        options: of its constructor, as the user gave them.
        pretrained: with timm's weights.
        others: options that the user may not give.

    Raises:
        UserError: timm has none of this name, does not take the options, or cannot get the pretrained weights.
    """
    check_timm(name)
    check_options(f"timm cannot build {name!r}", options)
    import timm

    try:
        return timm.create_model(name, pretrained=pretrained, **others, **options)
    except Exception as error:  # timm checks no option before it uses it
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if pretrained:
            raise UserError(
                f"the pretrained weights of {name!r} cannot be had ({reason}): go online, or pass --weights FILE"
            ) from error
        raise UserError(f"timm cannot build {name!r} with these options: {reason}") from error


def check_options(cannot: str, options: Mapping[str, Any]) -> None:
    """Refuse what no network may be given here; `cannot` begins the sentence.

    Raises:
        UserError: an option is not one of `OPTIONS`, or has no value of its kind.
    """
    for option, value in options.items():
        if option not in OPTIONS:
            raise UserError(
                f"{cannot} with these options: {option!r} is none that a network is given by name"
                f"{near(option, list(OPTIONS)) or '; write a function that builds it, and name file.py:function'}"
            )
        kind = OPTIONS[option]
        sound = value is None or type(value) in kind
        if sound and isinstance(value, int | float):
            sound = abs(value) <= LARGEST
        if sound and isinstance(value, str):
            sound = re.fullmatch(r"[A-Za-z]\w{0,40}", value) is not None
        if not sound:
            most = f" of at most {LARGEST:,}" if int in kind else ""
            raise UserError(f"{cannot} with these options: {option} is {KINDS[kind]}{most}, got {str(value)[:40]!r}")


def check_timm(name: str, *others: str) -> None:
    """Raise a `UserError` when timm has no network of this name; the others are names that would do, too."""
    import timm

    if not timm.is_model(name):
        hint = near(name, [*others, *timm.list_models()]) or "".join(f", and it is not {other}" for other in others)
        raise UserError(f"there is no model {name!r} in timm{hint}")


def _pretrained_cfg(name: str) -> Any:
    import timm

    return timm.get_pretrained_cfg(name) if timm.is_model(name) else None


def _sized(name: str, size: int | None) -> dict[str, Any]:
    """A network for images of one size alone is built for that size."""
    config = _pretrained_cfg(name) if size else None
    other = config and config.fixed_input_size and size != config.input_size[-1]
    return {"img_size": size} if other else {}


# --- torchvision -----------------------------------------------------------------------------------------------------


def _check_torchvision(name: str) -> None:
    from torchvision import models

    if name not in models.list_models():
        raise UserError(f"there is no model {name!r} in torchvision{near(name, models.list_models())}")


def _transforms(name: str) -> Any:
    """How the images of a network's pretraining were prepared."""
    from torchvision import models

    _check_torchvision(name)
    return models.get_model_weights(name).DEFAULT.transforms()


def _torchvision(named: Named, classes: int | None, channels: int | None) -> nn.Module:
    from torchvision import models

    _check_torchvision(named.name)
    check_options(f"torchvision cannot build {named.name!r}", named.options)
    takes = inspect.signature(models.get_model_builder(named.name)).parameters
    options = named.options | ({"weights_backbone": None} if "weights_backbone" in takes else {})
    asked = {} if classes is None else {"num_classes": classes}
    try:
        model = models.get_model(named.name, weights=None, **asked, **options)
    except Exception as error:  # torchvision checks no option before it uses it
        raise UserError(f"torchvision cannot build {named.name!r} with these options: {error}") from error
    if channels not in (None, 3):
        _enter_with(model, channels)
    return model


def _enter_with(model: nn.Module, channels: int) -> None:
    """Give a network another first convolution, for images of other channels."""
    convolutions: Iterator[tuple[str, Any]] = ((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    name, first = next(convolutions)
    parent, _, child = name.rpartition(".")
    other = nn.Conv2d(
        channels, first.out_channels, first.kernel_size, first.stride, first.padding, first.dilation,
        bias=first.bias is not None,
    )  # fmt: skip
    setattr(model.get_submodule(parent), child, other)


def _torchvision_example(named: Named, model: nn.Module, size: int | None, batch: int) -> Any:
    from torchvision import models

    name = named.name
    side = size or image_size(named) or SIDE
    if name in models.list_models(module=models.detection):
        resize: Any = model.transform
        fixed = resize.fixed_size or (resize.min_size[-1],)
        if size and not resize.fixed_size:
            resize.min_size, resize.max_size = (size,), size
        return (list(_images(batch, 3, size or fixed[0], size or fixed[0], make=torch.rand)),)
    if name in models.list_models(module=models.video):
        return _images(batch, 3, FRAMES, side, side)
    if name in models.list_models(module=models.optical_flow):
        return _images(batch, 3, side, side), _images(batch, 3, side, side)
    return _images(batch, 3, side, side)


# --- the user's own --------------------------------------------------------------------------------------------------


def _own(named: Named, classes: int | None, channels: int | None) -> tuple[nn.Module, Any]:
    path, text = named.file, named.text
    assert path is not None
    named.digest()  # that it is there
    if not named.name:
        raise UserError(f"say which function of {path} gives the network: {path}:NAME")
    with _beside(path):
        held = vars(_imported(path))
        function = held.get(named.name)
        if not callable(function):
            others = [name for name, value in held.items() if callable(value) and not name.startswith("_")]
            raise UserError(f"{path} has no function {named.name!r}{near(named.name, others)}")
        try:
            signature = inspect.signature(function)
        except ValueError:  # some classes have none
            signature = inspect.Signature()
        numbers = _numbers(signature, classes, channels)
        try:
            if signature.parameters:
                signature.bind(**numbers)
        except TypeError as error:
            told = " but for " + " and ".join(numbers) if numbers else ""
            raise UserError(
                f"{text} is called without arguments{told} ({error}): write a function around it that knows them"
            ) from error
        try:
            built = function(**numbers)
        except (Exception, SystemExit) as error:
            raise UserError(f"{text} failed {_said(error, path)}") from error
    model, example = built if isinstance(built, tuple) and len(built) == 2 else (built, None)
    if not isinstance(model, nn.Module):
        raise UserError(f"{text} returns {type(model).__name__}: return a torch.nn.Module, or one and its example")
    return model, example


def _numbers(signature: inspect.Signature, classes: int | None, channels: int | None) -> dict[str, int]:
    """The arguments of a user's function: the numbers of classes and channels where it asks for them."""
    given = {}
    for (words, usual), number in ((CLASSES, classes), (CHANNELS, channels)):
        word = next((word for word in words if word in signature.parameters), None)
        if word is None:
            continue
        default = signature.parameters[word].default
        if word == "channels" and isinstance(default, int) and default > 4:  # a width, not that of images
            continue
        if number is not None:
            given[word] = number
        elif default is inspect.Parameter.empty:
            given[word] = usual
    return given


class _Beside(MetaPathFinder):
    """Finds what lies beside a user's file, as for a script, but never instead of a standard module."""

    found: ClassVar[dict[str, str]] = {}  # module -> folder, of all files together

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder.resolve())

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if path is not None or name in sys.stdlib_module_names:
            return None
        spec = PathFinder.find_spec(name, [self.folder], target)
        if spec is None or spec.loader is None:  # nothing, or a folder of anything
            return None
        self.found[name] = self.folder
        return spec


@contextmanager
def _beside(path: Path) -> Iterator[None]:
    """What lies beside a file can be imported meanwhile; what lay beside another under the same name is forgotten."""
    finder = _Beside(path.parent)
    others = [name for name, folder in finder.found.items() if folder != finder.folder]
    for module in list(sys.modules):
        if module.partition(".")[0] in others:
            del sys.modules[module]
    for name in others:
        del finder.found[name]
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def _imported(path: Path) -> Any:
    """The user's file, run as a module under a name that no other module has."""
    name = f"_regard_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}_{path.stem}"
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None  # it ends in .py
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"{path} cannot be run {_said(error, path)}") from error
    return module


def _said(error: BaseException, path: Path) -> str:
    """What went wrong, and where in the user's file."""
    here = [frame for frame in extract_tb(error.__traceback__) if Path(frame.filename).resolve() == path.resolve()]
    where = f" in line {here[-1].lineno} of {path}" if here else ""
    return f"({type(error).__name__}{where}: {str(error).partition(chr(10))[0]})"
