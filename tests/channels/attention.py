"""Transformers as packages write them, small: one block after another of attention in many forms."""

import torch
import torch.nn.functional as F
from torch import nn

HEADS, TOKENS = 3, 9


class Packed(nn.Module):
    """Attention with one weight for queries, keys and values, as timm has it."""

    def __init__(self, c, form, *, fused):
        super().__init__()
        self.num_heads, self.head_dim, self.scale = HEADS, c // HEADS, (c // HEADS) ** -0.5
        self.qkv, self.proj = nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.form, self.fused = form, fused
        if form == "table":
            self.table = nn.Parameter(torch.randn(5, HEADS))
            self.register_buffer("places", torch.arange(TOKENS * TOKENS) % 5)

    def forward(self, x):
        b, n, c = x.shape
        each = {"attribute": self.head_dim, "minus": -1}.get(self.form, c // self.num_heads)
        q, k, v = (
            self.qkv(x).reshape(b, n, 3, self.num_heads, each).permute(2, 0, 3, 1, 4).unbind(0)
        )
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            weights = (q * self.scale) @ k.transpose(-2, -1)
            if self.form == "table":
                bias = self.table[self.places].view(n, n, -1)
                weights = weights + bias.permute(2, 0, 1).contiguous().unsqueeze(0)
            x = weights.softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class Apart(nn.Module):
    """Attention with a weight each, as transformers has it: heads are no channels that come in."""

    def __init__(self, c, form):
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = (
            HEADS,
            c // HEADS,
            c,
        )
        self.query, self.key, self.value, self.dense = (nn.Linear(c, c) for _ in range(4))
        self.form = form

    def forward(self, x):
        if self.form == "free":
            shape = (*x.shape[:-1], -1, self.attention_head_size)
            q, k, v = (
                layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value)
            )
            x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*x.shape[:-1], -1)
            return self.dense(x.contiguous())
        shape = (*x.size()[:-1], self.num_attention_heads, self.attention_head_size)
        q, k, v = (
            layer(x).view(shape).permute(0, 2, 1, 3) for layer in (self.query, self.key, self.value)
        )
        weights = F.softmax(
            torch.matmul(q, k.transpose(-1, -2)) / self.attention_head_size**0.5, dim=-1
        )
        x = torch.matmul(weights, v).permute(0, 2, 1, 3).contiguous()
        return self.dense(x.view((*x.size()[:-2], self.all_head_size)))


class Torchs(nn.Module):
    """torch's own, of one tensor or of one and another with the same channels."""

    def __init__(self, c, *, bias=True, crossed=False):
        super().__init__()
        self.attention, self.crossed = (
            nn.MultiheadAttention(c, HEADS, bias=bias, batch_first=True),
            crossed,
        )

    def forward(self, x):
        other = x[:, :5].relu() if self.crossed else x
        return self.attention(x, other, other, need_weights=False)[0]


ATTENTIONS = {
    "packed": lambda c: Packed(c, "attribute", fused=False),
    "packed fused": lambda c: Packed(c, "attribute", fused=True),
    "packed divided": lambda c: Packed(c, "divided", fused=False),
    "packed divided fused": lambda c: Packed(c, "divided", fused=True),
    "packed minus": lambda c: Packed(c, "minus", fused=True),
    "packed table": lambda c: Packed(c, "table", fused=False),
    "apart": lambda c: Apart(c, "written"),
    "apart fused": lambda c: Apart(c, "free"),
    "torch": Torchs,
    "torch without bias": lambda c: Torchs(c, bias=False),
    "torch crossed": lambda c: Torchs(c, crossed=True),
    "torch encoder": lambda c: nn.TransformerEncoderLayer(
        c, HEADS, 20, 0.0, batch_first=True, norm_first=True
    ),
}
OWN_HEADS = ("apart", "apart fused")


class Block(nn.Module):
    """Attention, then two linear layers, each behind a norm."""

    def __init__(self, c, attention):
        super().__init__()
        self.before, self.attention, self.behind = nn.LayerNorm(c), attention, nn.LayerNorm(c)
        self.mlp = nn.Sequential(nn.Linear(c, 10), nn.GELU(), nn.Linear(10, c))

    def forward(self, x):
        x = x + self.attention(self.before(x))
        return x + self.mlp(self.behind(x))


class Transformer(nn.Module):
    """A vision transformer of two blocks for images of 6 x 6."""

    def __init__(self, name, c=12):
        super().__init__()
        self.patches = nn.Conv2d(3, c, 2, 2)
        self.places = nn.Parameter(torch.randn(1, TOKENS, c))
        self.blocks = nn.Sequential(*[Block(c, ATTENTIONS[name](c)) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(c), nn.Linear(c, 4)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.blocks(x)).mean(1))
