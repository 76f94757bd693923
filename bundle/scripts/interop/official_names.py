"""Parameter names of the authors' code, for ours."""

from __future__ import annotations

import re

from ..networks.base import DenoisingNetwork
from ..networks.high_resolution import HighResolutionPRDiT

# (ours, theirs), applied to the start of a name; the first match holds
_PREFIXES = (
    ("time.", "t_embedder.mlp.0."),
    ("local.time_head.", "t_embedder.coarse_head."),
    ("residual.time_head.", "t_embedder.fine_head."),
    ("local.modulation.linear.", "coarse.mlp_denoise.adaLN_modulation.1."),
    ("local.block1.norm.", "coarse.mlp_denoise.mlp1.norm."),
    ("local.block2.norm.", "coarse.mlp_denoise.mlp2.norm."),
    ("local.block1.output.", "coarse.mlp_denoise.mlp1.fc2."),
    ("local.block2.output.", "coarse.mlp_denoise.mlp2.fc2."),
    ("local.output.", "coarse.mlp_denoise.linear_final."),
    ("residual.embedding.mlp.0.", "fine.patch_embedder.fc1."),
    ("residual.embedding.mlp.2.", "fine.patch_embedder.fc2."),
    ("residual.embedding.skip.", "fine.patch_embedder.skip."),
    ("residual.embedding.norm.", "fine.patch_embedder.norm."),
    ("residual.final_modulation.linear.", "fine.final_layer.adaLN_modulation.1."),
    ("residual.output.", "fine.final_layer.linear."),
)
_BLOCK_PARTS = (
    ("modulation.linear.", "adaLN_modulation.1."),
    ("attention.qkv.", "attn.qkv."),
    ("attention.proj.", "attn.proj."),
    ("mlp.0.", "mlp.fc1."),
    ("mlp.2.", "mlp.fc2."),
)


def _names_of(name: str) -> list[str]:
    """The authors' names of one of our parameters; our gate_up is their fc1_g stacked on fc1_x."""
    fused = re.fullmatch(r"local\.block([12])\.gate_up\.(weight|bias)", name)
    if fused:
        stem = f"coarse.mlp_denoise.mlp{fused[1]}."
        return [f"{stem}fc1_g.{fused[2]}", f"{stem}fc1_x.{fused[2]}"]
    block = re.fullmatch(r"residual\.blocks\.(\d+)\.(.+)", name)
    prefixes, rest, stem = (_BLOCK_PARTS, block[2], f"fine.blocks.{block[1]}.") if block else (_PREFIXES, name, "")
    for ours, theirs in prefixes:
        if rest.startswith(ours):
            return [stem + theirs + rest[len(ours) :]]
    raise ValueError(f"the authors' code has no counterpart of the parameter '{name}'")


def official_names(network: DenoisingNetwork) -> dict[str, list[str]]:
    """The authors' names of all our parameters; stage 3 is `base`, a refiner `sr` and its `t_embedder_sr`."""
    if not isinstance(network, HighResolutionPRDiT):
        return {name: _names_of(name) for name in network.state_dict()}
    names = {
        f"backbone.{ours}": [f"base.{name}" for name in theirs]
        for ours, theirs in official_names(network.backbone).items()
    }
    for name in network.state_dict():
        if not name.startswith("backbone."):
            theirs = _names_of(re.sub(r"^refiner\.", "local.", name))
            theirs = [re.sub(r"^t_embedder\.", "t_embedder_sr.", item) for item in theirs]
            names[name] = [re.sub(r"^coarse\.", "sr.", item) for item in theirs]
    return names
