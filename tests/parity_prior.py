"""The prior's families of `parity.py`: estimator, VA-encoder, losses, whole steps, ImageBind's reader and its tokeniser.

Tolerances are relative to max(1, largest value)."""
import warnings

import torch
from parity import Answer, family

from javisdit.imagebind import ClipTokenizer, text_tower
from javisdit.losses import branch_loss, cosine, kl_loss, onset_loss, prior_loss
from javisdit.prior import Negatives, PriorModel, prior_config_from_reference, prior_from_reference, prior_to_reference, stretch

PARTS = {"in_proj": "estimator.", "video_embedder": "va_encoder.", "discriminator": "discriminator."}


def answers(values, tolerance=1e-5):
    "Answers that may be off by `tolerance` of their largest value."
    return {k: Answer(v.detach(), tolerance=tolerance * max(1.0, v.detach().abs().max().item())) for k, v in values.items()}


def model_of(fixture):
    "The prior whose weights a fixture holds: all of it, or the parts that are there."
    config = prior_config_from_reference(fixture.config["config"])
    model, state = PriorModel(config).eval(), {}
    here = [part for name, part in PARTS.items() if any(k.startswith(name) for k in fixture.weights)]
    for part in here: state |= {part + k: v for k, v in prior_from_reference(fixture.weights, config, part).state.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and not [k for k in missing if k.startswith(tuple(here))], (missing, unexpected)
    return model, config


@family(r"prior_stib_.*")
def text_side(fixture):
    "Caption states to a prior, with given noise, in training and in evaluation mode."
    model, config = model_of(fixture)
    estimator, (states, noise) = model.estimator, (fixture.inputs[k] for k in ("text_hidden", "noise"))
    projected = estimator.text_in(states)
    memory = estimator.encoder(projected)
    queries = estimator.decoder(estimator.queries.expand(len(states), -1, -1), memory)
    belief = estimator.distribution(states)
    prior = estimator.draw(belief, noise=noise)
    training = estimator.train().distribution(states).mean
    assert (training - belief.mean).abs().max() <= 1e-5 * max(1, belief.mean.abs().max()), "training and evaluation differ"
    out = {"in_proj": projected, "memory": memory, "decoder": queries, "params": estimator.out(queries), "spatial_prior": prior.spatial, "temporal_prior": prior.temporal}
    if config.sampling:
        kl = torch.stack([kl_loss(type(belief)(m[None], v[None])) for m, v in zip(*belief)])
        out |= {"mean": belief.mean, "logvar": belief.logvar, "std": belief.std, "kl": kl}
    if config.onset: out["onset_prior"] = estimator.onset_head(prior.temporal).sigmoid()
    return answers({f"out/{k}": v for k, v in out.items()})


@family(r"prior_va_encoder.*")
def va_encoder(fixture):
    "Latents to embeddings, step by step."
    model, config = model_of(fixture)
    va, x = model.va_encoder, fixture.inputs
    size = x["frame_height"][:1], x["frame_width"][:1]      # of the first clip, as in the reference (deviation 16)
    video, audio = va.video_tokens(x["video"], *size), va.audio_tokens(x["audio"])
    out = {"video_tokens": video, "audio_tokens": audio}
    out["video_pos"] = (video - va.video_embed(x["video"]))[:1, 0]
    out["audio_pos"] = (audio - va.audio_embed(x["audio"].unsqueeze(3)))[:1, 0]
    for kind, n, dim, fuser in (("spatial", va.ns, 2, va.spatial), ("temporal", va.nt, 1, va.temporal)):
        v, a = out[f"video_{kind}"], out[f"audio_{kind}"] = stretch(video, n, dim), stretch(audio, n, dim)
        if kind == "spatial": v, a = v.transpose(1, 2), a.transpose(1, 2)
        seen = zip(("video", "audio"), fuser.look(v, a), (v, a))
        out |= {f"{kind}_attn_{stream}": (after - before).flatten(0, 1) for stream, after, before in seen}
    out["spatial_embed"], out["temporal_embed"] = va(x["video"], x["audio"], *size)
    return answers({f"out/{k}": v for k, v in out.items()})


def terms(kind, loss):
    "A branch's losses under the reference's names."
    out = dict(token=loss.token, disc=loss.disc, mse=loss.l2, va=loss.va, total=loss.total)
    return {f"out/{kind}_{k}_loss": v.double() for k, v in out.items()}


@family(r"prior_losses.*")
def contrastive(fixture):
    "Both branches, with the gradients on priors and embeddings."
    (model, _), out = model_of(fixture), {}
    for kind in ("spatial", "temporal"):
        embeds, prior = (fixture.inputs[f"{kind}_{k}"].clone().requires_grad_() for k in ("embed", "prior"))
        with torch.enable_grad():
            logits = model.discriminator(prior, embeds)
            loss = branch_loss(prior, embeds, logits)
            grads = torch.autograd.grad(loss.total, (embeds, prior))
        out |= terms(kind, loss) | {f"out/{kind}_{k}": v for k, v in zip(("grad_embed", "grad_prior"), grads)}
        out |= {f"out/{kind}_total": loss.total, f"out/{kind}_disc_logit": logits.flatten(),
                f"out/{kind}_token_logits": cosine(prior[:, None], embeds).transpose(1, 2).flatten(0, 1)}
    return answers(out)


@family(r"prior_total_loss.*")
def whole_step(fixture):
    "Everything that one step of stage 2 computes, and all gradients."
    model, config = model_of(fixture)
    x, size = fixture.inputs, (fixture.inputs["frame_height"][:1], fixture.inputs["frame_width"][:1])
    negatives = Negatives(**{f"{stream}_{kind}": x.get(f"neg_{stream}_{kind}") for stream in ("video", "audio") for kind in ("spatial", "temporal")})
    model.train().requires_grad_()
    with torch.enable_grad():
        belief = model.estimator.distribution(x["text_hidden"])
        prior = model.estimator.draw(belief, noise=x["noise"])
        embeds = model.va_encoder.contrast(x["video"], x["audio"], negatives, *size)
        loss = prior_loss(prior, belief, embeds, model.discriminator)
        if config.onset: loss = loss._replace(onset=onset_loss(model.estimator.onset_head(prior.temporal), x["onset"]))
        loss.total.backward()
    out = terms("spatial", loss.spatial) | terms("temporal", loss.temporal) | {"out/total": loss.total}
    out |= {f"out/{kind}_embed_flat": e.flatten(0, 1) for kind, e in zip(("spatial", "temporal"), embeds)}
    if config.sampling: out["out/kl_loss"] = (1e-6 * loss.kl).double()
    if config.onset: out["out/onset_loss"] = loss.onset.double()
    grads = prior_to_reference({k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in model.named_parameters()}, config)
    return answers(out | {f"grad/{k}": v for k, v in grads.items()})


def reader(fixture, heads, tokens):
    "States of all positions and embedding of a text tower."
    tower = text_tower(fixture.weights, heads)
    states = tower.states(tokens)
    return states, tower.pool(states, tokens)


@family(r"prior_imagebind_text.*")
def prior_reader(fixture):
    "The reader as the prior uses it, and the tokeniser on the captions in the metadata."
    states, embedding = reader(fixture, fixture.config["config"]["num_heads"], fixture.inputs["tokens"])
    out = answers({"out/hidden": states, "out/embed": embedding})
    return out | {"out/tokenizer_ids": Answer(tokenize(fixture.config["texts"]), tolerance=0.0)}


@family(r"eval_imagebind_text.*")
def eval_reader(fixture):
    "The reader as metrics use it, also for a caption that has lost its end mark."
    heads, x = fixture.config.get("config", fixture.config)["text_num_heads"], fixture.inputs
    states, embedding = reader(fixture, heads, x["tokens"])
    out = {"out/text_hidden": states, "out/text_emb": embedding}
    if "tokens_truncated" in x: out["out/text_emb_truncated"] = reader(fixture, heads, x["tokens_truncated"])[1]
    return answers(out, 1e-5)


def tokenize(texts):
    "Token numbers as the reference cuts them (deviation 27)."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ClipTokenizer(keep_end=False)(texts)


def check_tokens(ours, theirs):
    "A line a caption: how many of its numbers differ."
    return [(repr(a["text"][:30]), float(sum(x != y for x, y in zip(a["ids"], b["ids"], strict=True))), 0.0) for a, b in zip(ours, theirs, strict=True) if "ids" in b]


@family(r"eval_imagebind_tokens.*", check=check_tokens)
def tokens(fixture):
    "The tokeniser on a list of captions."
    texts = [case["text"] for case in fixture.inputs["cases"]]
    return [dict(text=t, ids=row) for t, row in zip(texts, tokenize(texts).tolist())]
