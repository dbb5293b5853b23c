"Every row of the paper's Tables 4 and 5 learns: gradients reach what the row adds, and what it adds changes the answer."
from dataclasses import asdict, replace

import pytest
import torch

from javisdit.codecs import load_codecs
from javisdit.core import generator, tiny
from javisdit.dit import JavisDiT, clip_facts, stage_of, trainable
from javisdit.encoders import load_text_encoder
from javisdit.flow import flow_loss, noisify, velocity_loss
from javisdit.maps import ablations
from javisdit.media import to_model
from javisdit.world import world_clip

CONFIG, CLIPS, STEPS, BATCH = tiny(), 24, 200, 2
ROWS = ablations(CONFIG.model)


@pytest.fixture(scope="module")
def latents():
    "Latents, text and facts of a few clips of the world, encoded once for all rows."
    made, codecs = [world_clip(i) for i in range(CLIPS)], load_codecs(CONFIG)
    with torch.no_grad():
        text = load_text_encoder(CONFIG)([m.caption for m in made])
        video = codecs[0].encode(torch.stack([to_model(m.clip.video) for m in made]))
        audio = codecs[1].encode(torch.stack([torch.from_numpy(m.clip.audio) for m in made]))
    return video, audio, text.states, text.mask, clip_facts(CONFIG.clip, *codecs)


def priors(model, n):
    "A prior for each clip, or none: drawn, because the estimator comes later."
    if model.prior is None: return ()
    return [torch.randn(n, k, model.config.prior_channels, generator=generator("variants", k, i)) for i, k in enumerate(model.config.prior_tokens)]


def test_rows():
    assert set(ROWS) == {"neither", "prior only", "exchange only", "addition", "modulation", *(f"{s} + {t} tokens" for s, t in ((0, 0), (1, 1), (16, 16), (16, 32), (32, 16), (32, 32)))}
    assert ROWS["neither"].bi == ROWS["neither"].prior_use == "none" and ROWS["prior only"].bi == "none" and ROWS["exchange only"].prior_use == "none"
    assert ROWS["32 + 32 tokens"] == replace(CONFIG.model, prior_tokens=(32, 32)), "the paper's own choice changes nothing else"


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_a_row_learns(name, latents):
    video, audio, states, mask, facts = latents
    model = JavisDiT(**asdict(ROWS[name])).init_weights("scratch", generator("variants"))
    for buffer, x in ((model.video_moments, video), (model.audio_moments, audio)): buffer.copy_(torch.stack(torch.var_mean(x.transpose(0, 1).flatten(1), 1)[::-1]))
    prior, optimizer, losses = priors(model, CLIPS), torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True), []
    new, start = trainable(model, 3), {k: p.detach().clone() for k, p in trainable(model, 3).items()}
    reached = set()
    for step in range(STEPS):
        g = generator("variants", "step", step)
        rows, t = torch.randperm(CLIPS, generator=g)[:BATCH], torch.rand(BATCH, generator=g)
        (xv, vv), (xa, va) = (noisify(x[rows], torch.randn(x[rows].shape, generator=g), t) for x in (video, audio))
        out = model(xv, xa, 1000 * t, model.conditions(states[rows], mask[rows], *(p[rows] for p in prior), **facts))
        loss = flow_loss(velocity_loss(out.video, vv), velocity_loss(out.audio, va))
        optimizer.zero_grad(); loss.backward()
        reached |= {k for k, p in new.items() if k not in reached and p.grad is not None and p.grad.abs().max() > 0}
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0); optimizer.step()
        losses.append(loss.item())
    first, last = sum(losses[:20]) / 20, sum(losses[-50:]) / 50
    model.eval()
    with torch.no_grad():
        n, rows = torch.full((BATCH,), 500.0), slice(0, BATCH)
        run = lambda p, sound=audio: model(video[rows], sound[rows], n, model.conditions(states[rows], mask[rows], *(x[rows] for x in p), **facts)).video
        own = run(prior)
        moved = [((run(p, s) - own).norm() / own.norm()).item() for p, s in ((prior and [p.roll(1, 0) for p in prior], audio), (prior, audio.roll(1, 0)))]
    grads = sum(p.grad.norm() ** 2 for p in new.values()) ** 0.5 if new else 0.0
    print(f"\n| {name} | {sum(p.numel() for p in new.values()):,} | {first:.3f} | {last:.3f} | {grads:.1e} | {moved[0]:.2%} | {moved[1]:.2%} |")
    assert last < 0.95 * first
    assert reached == set(new), f"never reached: {sorted(set(new) - reached)}"
    assert all((p.detach() - start[k]).abs().max() > 0 for k, p in new.items())
    assert (moved[0] > 1e-4) == bool(prior), "another clip's prior"
    assert (moved[1] > 1e-4) == (ROWS[name].bi != "none") and (moved[1] == 0) == (ROWS[name].bi == "none"), "another clip's sound"
    assert not [k for k in dict(model.named_parameters()) if stage_of(k) == 3 and k not in new]
