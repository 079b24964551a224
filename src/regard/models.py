"""Networks by a word: one of timm, one of torchvision, or what a function in the user's own file returns."""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from traceback import extract_tb
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from regard.errors import UserError, near
from regard.registry import parse

SIDE = 224  # pixels, where neither the user nor the network says another size
FRAMES = 16  # of a clip
TORCHVISION = "torchvision/"
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
    device: torch.device | str = "cpu",
) -> tuple[nn.Module, Any]:
    """Build a network with random weights, and a batch for it. Nothing is downloaded.

    The same text gives the same weights and images every time; torch's global random state stays as it was.

    Args:
        text: a name of timm, with options where wanted (``"resnet18[num_classes=5]"``, those in `OPTIONS`);
            ``"torchvision/NAME"``, also of its segmentation, detection, video and optical-flow networks; or
            ``"file.py:function"``, which is called without arguments and returns a model, or a model and an example.
            That runs the file, under a name of its own; it may import what lies beside it.
        size: side of the images in pixels; None is the network's own. A detector, which resizes its images itself, is
            told to resize them to this.
        batch: images, or clips; None is the usual number.
        usual: that number.
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
    with _same_every_time():
        model, example = _opened(text, size, batch, usual)
    return model.to(device), tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, example)


def _opened(text: str, size: int | None, batch: int | None, usual: int) -> tuple[nn.Module, Any]:
    if re.search(r"\.py(:|$)", text):
        return _own(text, size, batch, usual)
    if not re.fullmatch(r"\w+(\.\w+)?(\[.*\])?", text.removeprefix(TORCHVISION)):
        raise UserError(f"cannot read the model {text!r}: give a name of timm, torchvision/NAME or file.py:function")
    batch = batch or usual
    if text.startswith(TORCHVISION):
        return _torchvision(text.removeprefix(TORCHVISION), size, batch)
    name, options = parse(re.sub(r"\.\w+", "", text, count=1))  # timm's tag says which weights
    model = timm_model(name, _sized(name, size) | options)
    config: Any = model.pretrained_cfg
    channels, side, _ = config.get("input_size") or (3, SIDE, SIDE)
    side = size or options.get("img_size") or side
    return model, _images(batch, options.get("in_chans", channels), side, side)


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


def _sized(name: str, size: int | None) -> dict[str, Any]:
    """A network for images of one size alone is built for that size."""
    import timm

    config = timm.get_pretrained_cfg(name) if size and timm.is_model(name) else None
    return {"img_size": size} if config and config.fixed_input_size else {}


def _torchvision(text: str, size: int | None, batch: int) -> tuple[nn.Module, Any]:
    from torchvision import models

    name, options = parse(text)
    if name not in models.list_models():
        raise UserError(f"there is no model {name!r} in torchvision{near(name, models.list_models())}")
    check_options(f"torchvision cannot build {name!r}", options)
    takes = inspect.signature(models.get_model_builder(name)).parameters
    options |= {"weights_backbone": None} if "weights_backbone" in takes else {}
    try:
        model = models.get_model(name, weights=None, **options)
    except Exception as error:  # torchvision checks no option before it uses it
        raise UserError(f"torchvision cannot build {name!r} with these options: {error}") from error
    crop = getattr(models.get_model_weights(name).DEFAULT.transforms(), "crop_size", [SIDE])
    side = size or crop[-1]
    if name in models.list_models(module=models.detection):
        resize: Any = model.transform
        fixed = resize.fixed_size or (resize.min_size[-1],)
        if size and not resize.fixed_size:
            resize.min_size, resize.max_size = (size,), size
        return model, (list(_images(batch, 3, size or fixed[0], size or fixed[0], make=torch.rand)),)
    if name in models.list_models(module=models.video):
        return model, _images(batch, 3, FRAMES, side, side)
    if name in models.list_models(module=models.optical_flow):
        return model, (_images(batch, 3, side, side), _images(batch, 3, side, side))
    return model, _images(batch, 3, side, side)


def _images(*shape: int, make: Callable[..., Tensor] = torch.randn) -> Tensor:
    try:
        return make(*shape)
    except (RuntimeError, TypeError) as error:  # no memory, or more numbers than a tensor can count
        sides = " x ".join(map(str, shape))
        raise UserError(f"images of {sides} numbers do not fit into memory: take a smaller size or batch") from error


def _own(text: str, size: int | None, batch: int | None, usual: int) -> tuple[nn.Module, Any]:
    file, _, function = text.rpartition(":") if ":" in text else (text, "", "")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    if not function:
        raise UserError(f"say which function of {path} gives the network: {path}:NAME")
    with _beside(path):
        module = _imported(path)
        build = vars(module).get(function)
        if not callable(build):
            known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            raise UserError(f"{path} has no function {function!r}{near(function, known)}")
        try:
            with suppress(ValueError):  # some classes have no signature
                inspect.signature(build).bind()
        except TypeError as error:
            raise UserError(
                f"{text} is called without arguments ({error}): write a function around it that knows them"
            ) from error
        try:
            built = build()
        except (Exception, SystemExit) as error:
            raise UserError(f"{text} failed {_said(error, path)}") from error
    model, example = built if isinstance(built, tuple) and len(built) == 2 else (built, None)
    if not isinstance(model, nn.Module):
        raise UserError(f"{text} returns {type(model).__name__}: return a torch.nn.Module, or one and its example")
    if example is None:
        return model, _images(batch or usual, 3, size or SIDE, size or SIDE)
    if size or batch:
        raise UserError(f"{text} returns its own example, which size and batch do not change: leave them out")
    return model, example


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


@contextmanager
def _same_every_time() -> Iterator[None]:
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        yield
