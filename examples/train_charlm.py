"""Trains the model in ``charlm.pt``: a character-level transformer that learned to recite the Apache License.

    pip install torch && python examples/train_charlm.py

It is saved whole, with ``torch.save(model)``, from a class of this script: the habit that makes
checkpoints unreadable once the script has moved. ``sdconvert to-safetensors examples/charlm.pt``
needs neither this file nor torch.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

HERE = Path(__file__).parent
CONTEXT, WIDTH, HEADS, LAYERS = 64, 64, 4, 2


class CharLM(nn.Module):
    """A GPT in miniature; its embedding and its output layer are one tensor, its mask is not in its state dict."""

    def __init__(self, alphabet: str) -> None:
        super().__init__()
        self.alphabet = alphabet
        self.embedding = nn.Embedding(len(alphabet), WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, len(alphabet), bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT), persistent=False)
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, characters: Tensor) -> Tensor:
        """Scores (batch, length, alphabet) of the character that follows each of `characters` (batch, length)."""
        length = characters.shape[1]
        hidden = self.embedding(characters) + self.position[:length]
        hidden = self.blocks(hidden, mask=self.mask[:length, :length], is_causal=True)
        return self.head(self.norm(hidden))


def main() -> None:
    torch.manual_seed(0)
    text = (HERE.parent / "LICENSE").read_text()
    alphabet = "".join(sorted(set(text)))
    data = torch.tensor([alphabet.index(c) for c in text])
    model = CharLM(alphabet)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(1500):
        starts = torch.randint(len(data) - CONTEXT - 1, (64,))
        window = torch.stack([data[s : s + CONTEXT + 1] for s in starts])
        loss = nn.functional.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.steps += 1
        if step % 250 == 249:
            print(f"step {step + 1}: loss {loss.item():.3f}")
    torch.save(model, HERE / "charlm.pt")


if __name__ == "__main__":
    main()
