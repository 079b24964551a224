"""What a network of timm or torchvision may be given, by the kind of its value.

A text that names a network may come from a stranger's file, and their constructors also take paths, addresses and
configurations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from regard.base.errors import UserError, near

LARGEST = 2**16  # number in an option

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
        if not _is_sound(value, kind):
            most = f" of at most {LARGEST:,}" if int in kind else ""
            raise UserError(f"{cannot} with these options: {option} is {KINDS[kind]}{most}, got {str(value)[:40]!r}")


def _is_sound(value: Any, kind: tuple[type, ...]) -> bool:
    if value is not None and type(value) not in kind:
        return False
    if isinstance(value, int | float):
        return abs(value) <= LARGEST
    return not isinstance(value, str) or re.fullmatch(r"[A-Za-z]\w{0,40}", value) is not None
