"""A tiny CLIP whose words matter, and a mapper that says one word: for several tests."""

import torch

from trialrun.representation.pic2word import as_clip
from trialrun.representation.tiny_clip import TinyClip, WordTokenizer

WORDS = ("a", "photo", "drawing", "of", "and", "fox", "red")


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tiny(dtype=torch.float32, context=10):
    words = WordTokenizer(WORDS, context_length=context)
    model = TinyClip(
        words.vocab_size, size=8, embed_dim=12, width=8, layers=2, heads=2,
        context_length=context, channels=(4,),
    )  # fmt: skip
    with torch.no_grad():  # larger than at the start, so that words matter
        model.token_embedding.weight.normal_(generator=torch.Generator().manual_seed(1))
        for block in model.transformer.resblocks:
            block.qkv.weight.mul_(4)
            block.out.weight.mul_(8)
    return as_clip(model.to(dtype).eval(), words)


def word(clip, name):
    return clip.word_table()[clip.tokenize([name])[0, 1]].detach()


class Fixed(torch.nn.Module):
    """A mapper that says one real word whatever it sees."""

    def __init__(self, vector):
        super().__init__()
        self.vector = torch.nn.Parameter(vector)

    def forward(self, features):
        return self.vector.expand(*features.shape[:-1], -1)
