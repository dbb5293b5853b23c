"""Training masks against the reference's fixtures, for `parity.py`. Draws are replayed, or come from the generators that the reference used."""
import random

import torch
from parity import Answer, family

from javisdit.masks import mode_masks

OURS = {"intepolate": "interpolate"}     # their spelling


class Replay:
    "Draws that were recorded, in their order."
    def __init__(self, draws, each): self.draws, self.numbers = iter(draws), each
    def next(self, kind, *args):
        name, given, result = next(self.draws)
        assert (name, given) == (kind, [*args]), f"asked for {kind}{args}, recorded was {name}{given}"
        return result
    def whole(self, low, high): return self.next("randint", low, high)
    def between(self, low, high): return self.next("uniform", low, high)
    def each(self, n): return self.numbers


class Seeded:
    "Python's and torch's own generators, as the reference draws from them."
    def __init__(self, seed): self.python, self.torch = random.Random(seed), torch.Generator().manual_seed(seed)
    def whole(self, low, high): return self.python.randint(low, high)
    def between(self, low, high): return self.python.uniform(low, high)
    def each(self, n): return torch.rand(n, generator=self.torch)


def exact(masks): return [Answer(m, tolerance=0) for m in masks]


@family(r"prior_masks.*")
def recorded(fixture):
    "Each mode with the draws that were recorded; the first number chose the mode."
    out = {}
    for row in fixture.config["rows"]:
        end = f"{row['name']}_{row['Tv']}_{row['Ta']}"
        draw = Replay(row["draws"][1:], fixture.inputs.get(f"rand_{end}"))
        video, audio = exact(mode_masks(OURS.get(row["name"], row["name"]), row["Tv"], row["Ta"], draw))
        out |= {f"out/video_{end}": video, f"out/audio_{end}": audio}
    return out


@family(r"dit_mask_train.*")
def seeded(fixture):
    "Each mode for a batch, from seeds."
    c, out = fixture.config, {}
    for i, name in enumerate(c["names"]):
        draw, rows = Seeded(231 + i), []
        for _ in range(c["B"]):
            draw.python.random()                       # the number that chooses a clip's mode
            rows.append(mode_masks(OURS.get(name, name), c["T"], c["Ta"], draw))
        video, audio = exact(map(torch.stack, zip(*rows)))
        out |= {f"out/{name}/video": video, f"out/{name}/audio": audio}
    return out
