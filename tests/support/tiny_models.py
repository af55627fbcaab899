"""Model folders of a few hundred kB with random weights, as their builders lay them out.

They answer nonsense, the same on every machine, that depends on the image. Each has the real
model's classes, special tokens and chat template (kosmos-2 has none); only the sizes differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics2ImageProcessor,
    Idefics2Processor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    Kosmos2Config,
    Kosmos2ForConditionalGeneration,
    Kosmos2Processor,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

MAX_LENGTH = 2048
IMAGE_SIDE, PATCH_SIDE = 56, 14
WORDS = "a red blue green round square bold shape line leaf star with and of on the in corner "

IDEFICS_TOKENS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>")
IDEFICS_CHAT = """\
{%- for message in messages -%}
{{ message['role'] | capitalize }}:{{ '' if message['content'][0]['type'] == 'image' else ' ' }}
{%- for part in message['content'] -%}
{{ '<image>' if part['type'] == 'image' else part['text'] }}
{%- endfor -%}
<end_of_utterance>{{ '\n' }}
{%- endfor -%}
{{ 'Assistant:' if add_generation_prompt }}"""
LLAMA_CHAT = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"

_DECODER: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_LENGTH,
}
_ENCODER: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": IMAGE_SIDE,
    "patch_size": PATCH_SIDE,
}


def build_idefics3(folder: Path) -> None:
    """As HuggingFaceM4/Idefics3-8B-Llama3: native in vLLM; an image is tiles and an overview."""
    tiles = [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]
    tokenizer = _tokenizer([*IDEFICS_TOKENS, "<global-img>", *tiles])
    images = Idefics3ImageProcessor(
        size={"longest_edge": 2 * IMAGE_SIDE}, max_image_size={"longest_edge": IMAGE_SIDE}
    )
    num_tokens = (IMAGE_SIDE // PATCH_SIDE // 2) ** 2
    Idefics3Processor(
        images, tokenizer, image_seq_len=num_tokens, chat_template=IDEFICS_CHAT
    ).save_pretrained(folder)
    config = Idefics3Config(
        text_config={"model_type": "llama", **_DECODER, **_vocabulary(tokenizer)},
        vision_config=_ENCODER,
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    _save(Idefics3ForConditionalGeneration, config, tokenizer, folder)


def build_idefics2(folder: Path) -> None:
    """As HuggingFaceM4/idefics2-8b: in transformers only."""
    tokenizer = _tokenizer(IDEFICS_TOKENS)
    images = Idefics2ImageProcessor(
        do_image_splitting=False, size={"longest_edge": IMAGE_SIDE, "shortest_edge": PATCH_SIDE}
    )
    Idefics2Processor(
        images, tokenizer, image_seq_len=8, chat_template=IDEFICS_CHAT
    ).save_pretrained(folder)
    config = Idefics2Config(
        text_config={"model_type": "mistral", **_DECODER, **_vocabulary(tokenizer)},
        vision_config=_ENCODER,
        perceiver_config={
            "hidden_size": _DECODER["hidden_size"],
            "resampler_n_latents": 8,
            "resampler_depth": 1,
            "resampler_n_heads": 4,
            "resampler_head_dim": 32,
            "num_key_value_heads": 2,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    _save(Idefics2ForConditionalGeneration, config, tokenizer, folder)


def build_kosmos2(folder: Path) -> None:
    """As microsoft/kosmos-2-patch14-224: in transformers only, a base model without a chat."""
    tokenizer = _tokenizer([])
    images = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIDE}, crop_size={"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    )
    Kosmos2Processor(images, tokenizer, num_patch_index_tokens=16).save_pretrained(folder)
    config = Kosmos2Config(
        text_config={
            "embed_dim": 128,
            "ffn_dim": 256,
            "layers": 2,
            "attention_heads": 4,
            "max_position_embeddings": MAX_LENGTH,
            **_vocabulary(tokenizer),
        },
        vision_config=_ENCODER,
    )
    _save(Kosmos2ForConditionalGeneration, config, tokenizer, folder)


def build_text_only(folder: Path) -> None:
    """A Llama, which takes no images."""
    tokenizer = _tokenizer([])
    tokenizer.chat_template = LLAMA_CHAT
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(**_DECODER, **_vocabulary(tokenizer))
    _save(LlamaForCausalLM, config, tokenizer, folder)


def _tokenizer(special: Sequence[str]) -> PreTrainedTokenizerFast:
    """Bytes and a few words, with the special tokens of the model."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        vocab_size=512,
    )
    inner.train_from_iterator([WORDS] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=MAX_LENGTH,
    )


def _vocabulary(tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _save(
    kind: type[PreTrainedModel], config: Any, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Random weights, large enough for an answer to depend on the image."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config)
        for weight in model.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=1.5 * weight.shape[1:].numel() ** -0.5)
    _speak_in_words(model, tokenizer)
    model.save_pretrained(folder)


def _speak_in_words(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Suppress special tokens and single bytes, so that each answer is text."""
    words = {word for word in tokenizer.get_vocab() if word.isascii() or word.startswith("Ġ")}
    spoken = {tokenizer.convert_tokens_to_ids(word) for word in words}
    silent = [i for i in range(len(tokenizer)) if i not in spoken or "<" in tokenizer.decode([i])]
    with torch.no_grad():
        model.get_output_embeddings().weight[silent] = 0.0
