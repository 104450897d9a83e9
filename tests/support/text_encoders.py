"""Language models that encode prompts, tiny and with random weights, and their tokenizers made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)

WIDTH = 16
"""Of their hidden states."""

_VOCABULARY = 300
_SPECIAL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_TEXT = {
    "vocab_size": _VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_TEMPLATE = (
    "{% for one in messages %}<|im_start|>{{ one.role }}\n"
    "{% if one.content is string %}{{ one.content }}{% else %}"
    "{% for part in one.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
)


def byte_tokenizer() -> Qwen2Tokenizer:
    """Every byte is a token, and so is every mark of a template."""
    vocabulary = {text: place for place, text in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], chat_template=_TEMPLATE)
    tokenizer.add_special_tokens({"additional_special_tokens": list(_SPECIAL)})
    return tokenizer


def qwen_vl() -> Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL, as Qwen-Image has it."""
    torch.manual_seed(0)
    mark = byte_tokenizer().convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            **_TEXT,
            "num_hidden_layers": 1,
            "rope_scaling": {"type": "default", "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [0],
        },
        image_token_id=mark("<|image_pad|>"),
        video_token_id=mark("<|video_pad|>"),
        vision_start_token_id=mark("<|vision_start|>"),
        vision_end_token_id=mark("<|vision_end|>"),
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def mistral(layers: int) -> Mistral3ForConditionalGeneration:
    """Mistral 3, as Flux 2 has it."""
    torch.manual_seed(0)
    vision = {"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = Mistral3Config(
        text_config={**_TEXT, "model_type": "mistral", "num_hidden_layers": layers},
        vision_config={**vision, "num_attention_heads": 2, "image_size": 32, "patch_size": 8},
        image_token_index=byte_tokenizer().convert_tokens_to_ids("<|image_pad|>"),
    )
    return Mistral3ForConditionalGeneration(config).eval()


def qwen3(layers: int) -> Qwen3ForCausalLM:
    """Qwen 3, as Flux 2 Klein has it."""
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**_TEXT, num_hidden_layers=layers)).eval()


def texts_of(tokens: Sequence[Any] | None) -> str:
    """What byte tokens spell."""
    return "".join(tokens or ()).replace("\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}", " ")


def qwen_vl_processor() -> Any:
    """What reads prompts and pictures for Qwen2.5-VL; it needs torchvision."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    pixels = {"min_pixels": 28**2, "max_pixels": 4 * 28**2}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=byte_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(**pixels),
    )


def pixtral_processor() -> Any:
    """What reads prompts and pictures for Mistral 3; it needs torchvision."""
    from transformers import PixtralImageProcessor, PixtralProcessor

    tokenizer = byte_tokenizer()
    return PixtralProcessor(
        image_processor=PixtralImageProcessor(size={"longest_edge": 32}, patch_size=8),
        tokenizer=tokenizer,
        patch_size=8,
        image_token="<|image_pad|>",
        image_break_token="<|vision_start|>",
        image_end_token="<|vision_end|>",
        chat_template=tokenizer.chat_template,
    )
