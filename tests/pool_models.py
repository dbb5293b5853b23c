"Models of a few thousand random numbers in the official formats, as folders that `from_pretrained` reads."
from pathlib import Path

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

CHAT = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"


def byte_tokenizer(special, **kw):
    "One token a byte, and special ones."
    vocab = {c: i for i, c in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    t = Tokenizer(models.BPE(vocab, []))
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return hf.PreTrainedTokenizerFast(tokenizer_object=t, **kw)


def chat_model(folder, template=CHAT):
    "A Qwen2 that writes nonsense."
    torch.manual_seed(0)
    words = byte_tokenizer(["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"], eos_token="<|end|>", pad_token="<|end|>")
    words.chat_template = template
    config = hf.Qwen2Config(vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                            eos_token_id=0, pad_token_id=0, bos_token_id=None)
    hf.Qwen2ForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return Path(folder)


def sam_model(folder):
    "A SAM with a picture side of 64."
    torch.manual_seed(0)
    vision = dict(hidden_size=16, output_channels=8, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=8, window_size=2,
                  global_attn_indexes=[1], mlp_dim=32, num_pos_feats=4)
    prompt = dict(hidden_size=8, image_size=64, patch_size=8, mask_input_channels=4)
    decoder = dict(hidden_size=8, mlp_dim=16, num_attention_heads=2, attention_downsample_rate=2, iou_head_hidden_dim=8, num_hidden_layers=2)
    hf.SamModel(hf.SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)).save_pretrained(folder)
    hf.SamProcessor(hf.SamImageProcessorPil(size=dict(longest_edge=64), pad_size=dict(height=64, width=64), mask_size=dict(longest_edge=16), mask_pad_size=dict(height=16, width=16))).save_pretrained(folder)
    return Path(folder)


def owl_model(folder):
    "An OWLv2 with a picture side of 32."
    torch.manual_seed(0)
    folder = Path(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate([*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"])}
    words = hf.CLIPTokenizer(vocab=vocab, merges=[], pad_token="<|endoftext|>", model_max_length=16)
    text = dict(vocab_size=len(vocab), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=16,
                bos_token_id=len(vocab) - 2, eos_token_id=len(vocab) - 1, pad_token_id=len(vocab) - 1)
    vision = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8)
    hf.Owlv2ForObjectDetection(hf.Owlv2Config(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    hf.Owlv2Processor(hf.Owlv2ImageProcessorPil(size=dict(height=32, width=32)), words).save_pretrained(folder)
    return folder


def dino_model(folder):
    "A Grounding DINO."
    torch.manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocab = {c: i for i, c in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *letters, *("##" + c for c in letters)])}
    words = hf.BertTokenizer(vocab=vocab)
    text = hf.BertConfig(vocab_size=len(vocab), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    swin = hf.SwinConfig(image_size=32, window_size=2, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], out_features=["stage2", "stage3", "stage4"])
    config = hf.GroundingDinoConfig(backbone_config=swin, text_config=text, d_model=32, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
                                    encoder_attention_heads=2, decoder_attention_heads=2, num_queries=8, num_feature_levels=4, max_text_len=64)
    hf.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    hf.GroundingDinoProcessor(hf.GroundingDinoImageProcessorPil(size=dict(shortest_edge=64, longest_edge=128)), words).save_pretrained(folder)
    return Path(folder)


def audiosep(folder):
    "A checkpoint as lightning writes it, with what the published one holds besides, and a tokenizer."
    from javisdit.make_pools import ResUNet30
    torch.manual_seed(0)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters])}
    hf.RobertaTokenizer(vocab=vocab, merges=[], model_max_length=80).save_pretrained(folder)
    text = hf.RobertaModel(hf.RobertaConfig(vocab_size=len(vocab), hidden_size=16, num_hidden_layers=2, num_attention_heads=1, intermediate_size=32, max_position_embeddings=82, type_vocab_size=1, initializer_range=0.3))
    project = torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.ReLU(), torch.nn.Linear(24, 24))
    net = ResUNet30((4, 4, 6, 6, 8, 8), 24, 1024)
    parts = {"ss_model.": net, "query_encoder.model.text_branch.": text, "query_encoder.model.text_projection.": project}
    state = {p + k: v for p, m in parts.items() for k, v in m.state_dict().items()}
    for k in ("ss_model.base.stft.conv_real.weight", "ss_model.base.istft.ola_window", "query_encoder.model.audio_branch.norm.weight", "query_encoder.model.logit_scale_a",
              "query_encoder.model.audio_projection.0.weight", "query_encoder.model.text_transform.sequential.0.weight", "query_encoder.model.text_branch.embeddings.position_ids"): state[k] = torch.zeros(2)
    torch.save(dict(state_dict=state, epoch=3, optimizer_states=[]), Path(folder) / "audiosep.ckpt")


def sound_model(folder):
    "An AudioLDM2 pipeline."
    import diffusers as d
    torch.manual_seed(0)
    unet = d.AudioLDM2UNet2DConditionModel(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=8, sample_size=32, in_channels=4, out_channels=4,
                                           down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                                           cross_attention_dim=(8, 16))
    vae = d.AutoencoderKL(block_out_channels=[8, 16], in_channels=1, out_channels=1, norm_num_groups=8, latent_channels=4,
                          down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters])}
    clap_words = hf.RobertaTokenizer(vocab=vocab, merges=[], model_max_length=77)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((c, -2.0) for c in "abcdefghijklmnopqrstuvwxyz,.'-")]
    t5_words = hf.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=77)
    text = dict(vocab_size=len(vocab), hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=90, projection_dim=8,
                bos_token_id=0, eos_token_id=2, pad_token_id=1)
    audio = dict(spec_size=64, window_size=4, num_mel_bins=64, depths=[1, 1], num_attention_heads=[1, 1], num_hidden_layers=2, hidden_size=16, patch_embeds_hidden_size=8,
                 projection_dim=8, patch_size=4, patch_stride=[4, 4], enable_fusion=False)
    clap = hf.ClapModel(hf.ClapConfig(text_config=text, audio_config=audio, projection_dim=8))
    t5 = hf.T5EncoderModel(hf.T5Config(vocab_size=len(pieces), d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2))
    gpt = hf.GPT2Model(hf.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=8, n_positions=99))
    gpt.config.max_new_tokens = 8
    voice = hf.SpeechT5HifiGan(hf.SpeechT5HifiGanConfig(model_in_dim=8, sampling_rate=16000, upsample_initial_channel=16, upsample_rates=[4, 4, 10], upsample_kernel_sizes=[8, 8, 20],
                                                        resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1]], normalize_before=False))
    with torch.no_grad():
        for p in voice.parameters(): p.copy_(torch.randn(p.shape) * 0.2)                          # loud enough to be written
    pipe = d.AudioLDM2Pipeline(vae=vae, text_encoder=clap, text_encoder_2=t5, projection_model=d.AudioLDM2ProjectionModel(text_encoder_dim=8, text_encoder_1_dim=16, langauge_model_dim=16),
                               language_model=gpt, tokenizer=clap_words, tokenizer_2=t5_words, feature_extractor=hf.ClapFeatureExtractor(), unet=unet,
                               scheduler=d.DDIMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear"), vocoder=voice)
    pipe.save_pretrained(folder)
    return Path(folder)
