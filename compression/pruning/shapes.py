"""Cuts whole parts out of a model, so that its shapes stay the same in every layer and every engine serves it.

Channels of the feed-forward networks, attention heads by groups that share keys and values, and layers go where the
gates of least importance are: the mean over pairs of |sum of activation times gradient|, by preferences and by text
(the first-order change when the part is removed, arXiv:1905.10650 for heads). Layers go by the damage that removing
each one alone does to preferences.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compression.flips import damage
from compression.pairs import Pair, scores_of
from compression.pruning.importance import losses_of
from compression.pruning.plan import Pruning, planned

BATCH = 8
SEEN = 64
"""Pairs on which layers are left out."""


def cut_out(model: Any, pairs: Sequence[Pair], pruning: Pruning) -> Any:
    """A smaller copy of a model. Raises InputError for a share that leaves nothing, and for architectures whose parts
    cannot be cut out."""
    wanted = planned(model.config, pruning)
    smaller = copy.deepcopy(model).eval()
    if pruning.layers:
        _cut_layers(smaller, pairs[:SEEN], int(wanted.num_hidden_layers))
    if pruning.channels:
        _cut_channels(smaller, pairs, int(wanted.intermediate_size))
    if pruning.groups:
        _cut_groups(smaller, pairs, wanted)
    return smaller


def _cut_layers(model: Any, pairs: Sequence[Pair], kept: int) -> None:
    """Leave out, one after the other, the layer without which preferences change least."""
    before = scores_of(model, pairs)
    while len(model.model.layers) > kept:
        layers = list(model.model.layers)
        harms = []
        for place in range(len(layers)):
            _use_layers(model, [*layers[:place], *layers[place + 1 :]])
            harms.append(damage(before, scores_of(model, pairs)).soft_flips)
        least = min(range(len(layers)), key=harms.__getitem__)
        _use_layers(model, [*layers[:least], *layers[least + 1 :]])


def _use_layers(model: Any, layers: Sequence[Any]) -> None:
    model.model.layers = nn.ModuleList(layers)
    model.config.num_hidden_layers = len(layers)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[: len(layers)]
    for place, layer in enumerate(layers):
        layer.self_attn.layer_idx = place  # its place in the cache


def _cut_channels(model: Any, pairs: Sequence[Pair], kept: int) -> None:
    scores = _gate_scores(model, pairs, "mlp.down_proj", width=1)
    for layer, score_C in zip(model.model.layers, scores, strict=True):
        chosen = score_C.topk(kept).indices.sort().values
        for name in ("gate_proj", "up_proj"):
            _keep_outputs(getattr(layer.mlp, name), chosen)
        _keep_inputs(layer.mlp.down_proj, chosen)
        layer.mlp.intermediate_size = kept
    model.config.intermediate_size = kept


def _cut_groups(model: Any, pairs: Sequence[Pair], wanted: Any) -> None:
    """wanted: the configuration afterwards."""
    config, width, kept = model.config, int(wanted.head_dim), int(wanted.num_key_value_heads)
    per_group = int(config.num_attention_heads) // int(config.num_key_value_heads)
    scores = _gate_scores(model, pairs, "self_attn.o_proj", width=per_group * width)
    for layer, score_G in zip(model.model.layers, scores, strict=True):
        chosen = score_G.topk(kept).indices.sort().values
        attention = layer.self_attn
        own, shared = _spread(chosen, per_group * width), _spread(chosen, width)
        _keep_outputs(attention.q_proj, own)
        _keep_inputs(attention.o_proj, own)
        for name in ("k_proj", "v_proj"):
            _keep_outputs(getattr(attention, name), shared)
    config.num_attention_heads, config.num_key_value_heads = kept * per_group, kept
    config.head_dim = width


def _gate_scores(model: Any, pairs: Sequence[Pair], name: str, *, width: int) -> list[Tensor]:
    """Importance of parts of `width` inputs of one matrix of each layer: the larger of the scaled importance to
    preferences and to text."""
    layers = [layer.get_submodule(name) for layer in model.model.layers]
    kept: dict[int, Tensor] = {}

    def keep(place: int) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            kept[place] = inputs[0]

        return hook

    sums = [torch.zeros(2, layer.in_features // width) for layer in layers]
    hooks = [layer.register_forward_pre_hook(keep(place)) for place, layer in enumerate(layers)]
    embedding = model.get_input_embeddings().weight
    asked = embedding.requires_grad
    embedding.requires_grad_(True)
    try:
        for start in range(0, len(pairs), BATCH):
            some = pairs[start : start + BATCH]
            losses, _ = losses_of(model, some)
            for kind, loss in enumerate(losses):
                inputs = [kept[place] for place in range(len(layers))]
                gradients = torch.autograd.grad(loss, inputs, retain_graph=kind == 0)
                for sum_KP, value, gradient in zip(sums, inputs, gradients, strict=True):
                    effect_BT = (value.detach() * gradient).float().reshape(*value.shape[:2], -1, width).sum(-1)
                    of_row = effect_BT.sum(1)
                    of_pair = of_row[: len(some)] + of_row[len(some) :]  # both answers of a pair
                    sum_KP[kind] += of_pair.abs().sum(0)
    finally:
        embedding.requires_grad_(asked)
        for hook in hooks:
            hook.remove()
    return [(one / one.mean(-1, keepdim=True).clamp_min(1e-12)).amax(0) for one in sums]


def _spread(places: Tensor, width: int) -> Tensor:
    """The numbers of all rows of these blocks."""
    return (places[:, None] * width + torch.arange(width)).flatten()


@torch.no_grad()
def _keep_outputs(layer: Any, places: Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight[places].clone(), requires_grad=layer.weight.requires_grad)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias[places].clone(), requires_grad=layer.bias.requires_grad)
    layer.out_features = len(places)


@torch.no_grad()
def _keep_inputs(layer: Any, places: Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight[:, places].clone(), requires_grad=layer.weight.requires_grad)
    layer.in_features = len(places)
