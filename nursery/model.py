"""A Llama-, Qwen2- or Qwen3-shaped network small enough to be trained in a minute, saved as Hugging Face saves it.

The names and the arithmetic are those of Transformers' own classes (a test compares them), so what is grown
here is loaded there and by vLLM. It is written out because tiny networks are bound by overhead: packed
questions, a last layer that looks only from the places that are read, and no import of a large library.
"""

# B rows, T token positions, H heads, D head width, W hidden width, N places that are read, V vocabulary

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from solon.host.file_modes import widen

Family = Literal["llama", "qwen2", "qwen3"]
_ARCHITECTURE = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
MAX_POSITIONS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Family and sizes of a network."""

    family: Family
    layers: int
    hidden: int = 128
    intermediate: int = 256
    heads: int = 4
    kv_heads: int = 4
    vocab: int = 256

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What each position may look at, and where it stands; the same for every layer."""

    cos_BTD: Tensor
    sin_BTD: Tensor
    mask_BTT: Tensor | None
    """None: causal."""
    places_N: tuple[Tensor, Tensor] | None = None
    """(row, position) of what is read; None reads every position."""


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        bias, width = shape.family == "qwen2", shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, shape.hidden, bias=bias)
        self.k_proj = nn.Linear(shape.hidden, width, bias=bias)
        self.v_proj = nn.Linear(shape.hidden, width, bias=bias)
        self.o_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)
        if shape.family == "qwen3":
            self.q_norm = nn.RMSNorm(shape.head_dim, eps=1e-6)
            self.k_norm = nn.RMSNorm(shape.head_dim, eps=1e-6)

    def project(self, x_BTW: Tensor, view: View) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, H, T, D], queries and keys rotated to their positions."""
        q_BHTD, k_BHTD, v_BHTD = (
            project(x_BTW).unflatten(-1, (-1, self.shape.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.shape.family == "qwen3":
            q_BHTD, k_BHTD = self.q_norm(q_BHTD), self.k_norm(k_BHTD)
        return _rotate(q_BHTD, view), _rotate(k_BHTD, view), v_BHTD

    def attend(self, q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, mask_BTS: Tensor | None) -> Tensor:
        """Mix values [B, S] into positions [B, T]; without a mask, causally."""
        mask = None if mask_BTS is None else mask_BTS[:, None]
        grouped = self.shape.kv_heads != self.shape.heads
        out_BHTD = functional.scaled_dot_product_attention(
            q_BHTD, k_BHSD, v_BHSD, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped
        )
        return torch.as_tensor(self.o_proj(out_BHTD.transpose(1, 2).flatten(2)))

    def forward(self, x_BTW: Tensor, view: View) -> Tensor:
        return self.attend(*self.project(x_BTW, view), view.mask_BTT)


class Mlp(nn.Module):
    """Gated feed-forward."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x)))


class Layer(nn.Module):
    """Attention, then feed-forward, each on a normalised residual stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden, eps=1e-6)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=1e-6)
        self.mlp = Mlp(shape)

    def forward(self, x_BTW: Tensor, view: View) -> Tensor:
        x_BTW = x_BTW + self.self_attn(self.input_layernorm(x_BTW), view)
        x = x_BTW if view.places_N is None else x_BTW[view.places_N]
        return torch.as_tensor(x + self.mlp(self.post_attention_layernorm(x)))


class Body(nn.Module):
    """Embedding, layers and last norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=1e-6)


class TinyModel(nn.Module):
    """`TinyModel(Shape(family="llama", layers=2))(ids_BT)` gives logits [B, T, V]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Body(shape)
        self.lm_head = nn.Linear(shape.hidden, shape.vocab, bias=False)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02 if "embed" in name else parameter.shape[1] ** -0.5 * 0.5)
        frequency_D = 10000.0 ** (-torch.arange(0, shape.head_dim, 2) / shape.head_dim)
        angle = torch.arange(MAX_POSITIONS)[:, None] * torch.cat([frequency_D, frequency_D])
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Logits of every position."""
        view = self.view(torch.arange(ids_BT.shape[1])[None])
        return self.read(self.inner(ids_BT, view), view)

    @property
    def layers(self) -> list[Layer]:
        """The layers, typed."""
        return [layer for layer in self.model.layers if isinstance(layer, Layer)]

    def view(self, positions_BT: Tensor, mask_BTT: Tensor | None = None) -> View:
        """A view from given positions."""
        return View(cos_BTD=self.cos[positions_BT], sin_BTD=self.sin[positions_BT], mask_BTT=mask_BTT)

    def inner(self, ids_BT: Tensor, view: View) -> Tensor:
        """The stream [B, T, W] that enters the last layer."""
        x_BTW = self.model.embed_tokens(ids_BT)
        for layer in self.layers[:-1]:
            x_BTW = layer(x_BTW, view)
        return torch.as_tensor(x_BTW)

    def read(self, inner_BTW: Tensor, view: View) -> Tensor:
        """Logits behind the last layer: [N, V] of the places that are read, else [B, T, V]."""
        return self.logits(self.layers[-1](inner_BTW, view))

    def logits(self, x: Tensor) -> Tensor:
        """Logits from the stream behind the last layer."""
        return torch.as_tensor(self.lm_head(self.model.norm(x)))

    def save(self, directory: Path, *, end_id: int, pad_id: int) -> None:
        """config.json, generation_config.json and model.safetensors; the tokenizer is written by `language`."""
        from safetensors.torch import save_file

        tensors = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, str(directory / "model.safetensors"), metadata={"format": "pt"})
        widen(directory)
        ids = {"bos_token_id": None, "eos_token_id": end_id, "pad_token_id": pad_id}
        config = {**hf_config(self.shape), **ids}
        (directory / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        (directory / "generation_config.json").write_text(json.dumps(ids, indent=2), encoding="utf-8")


def hf_config(shape: Shape) -> dict[str, object]:
    """The shape in the words of a Hugging Face config.json."""
    config: dict[str, object] = {
        "architectures": [_ARCHITECTURE[shape.family]],
        "model_type": shape.family,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "dtype": "float32",
    }
    if shape.family == "llama":
        config |= {"attention_bias": False, "mlp_bias": False}
    elif shape.family == "qwen3":
        config |= {"attention_bias": False}
    return config


def shape_of(directory: Path) -> Shape:
    """The shape that a config.json describes."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return Shape(
        family=config["model_type"],
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        vocab=config["vocab_size"],
    )


def load(directory: Path) -> TinyModel:
    """A model that `save` wrote."""
    from safetensors.torch import load_file

    model = TinyModel(shape_of(directory))
    model.load_state_dict(load_file(str(directory / "model.safetensors")))
    return model


def _rotate(x_BHTD: Tensor, view: View) -> Tensor:
    first, second = x_BHTD.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return x_BHTD * view.cos_BTD[:, None] + turned * view.sin_BTD[:, None]
