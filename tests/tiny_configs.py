"""Define arguments of config classes for tiny models: hidden size 64, 4 query heads on 2 key heads, 4 layers."""

from __future__ import annotations

from typing import Any

TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    **TOKENS,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
# Qwen-VL models have other names of settings, and merge 2 × 2 patches.
QWEN_VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "out_hidden_size": 64,
    "num_heads": 2,
    "patch_size": 8,
}
QWEN_TOKENS = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 3, "vision_end_token_id": 4}
CLIP = {**VISION, "model_type": "clip_vision_model", "projection_dim": 32}
SIGLIP = {**VISION, "model_type": "siglip_vision_model", "vision_use_head": False}
MULTIMODAL_ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
MULTI_HEAD = {**TEXT, "num_key_value_heads": 4}
# The head size differs from hidden size / heads, as in most present models.
WIDE_HEADS = {**TEXT, "head_dim": 32}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LINEAR_ATTENTION = {
    "linear_conv_kernel_dim": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
QWEN3_5_ROPE = {**MULTIMODAL_ROPE, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.25}
GEMMA_LAYERS = ["sliding_attention", "full_attention"] * 2
GLM_ROPE = {**MULTIMODAL_ROPE, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
MOLMO_VISION = {
    "vision_config": {
        **VISION,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "image_size": [16, 16],
        "num_position_embeddings": 4,
    },
    "adapter_config": {
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 48,
        "text_hidden_size": 64,
        "vision_feature_layer": [-1, -2],
    },
    "image_patch_id": 5,
}

# Arguments of each family's config class. The names are those of the records in configs/families, except for variants
# of one family.
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2-vl": {
        "model_type": "qwen2_vl",
        "text_config": {**TEXT, "rope_parameters": MULTIMODAL_ROPE},
        "vision_config": {**QWEN_VISION, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2},
        **QWEN_TOKENS,
    },
    "qwen2.5-vl": {
        "model_type": "qwen2_5_vl",
        "text_config": {**TEXT, "rope_parameters": MULTIMODAL_ROPE},
        "vision_config": {**QWEN_VISION, "window_size": 32, "fullatt_block_indexes": [1]},
        **QWEN_TOKENS,
    },
    "qwen3-vl": {
        "model_type": "qwen3_vl",
        "text_config": {**WIDE_HEADS, "rope_parameters": {**MULTIMODAL_ROPE, "mrope_section": [6, 5, 5]}},
        "vision_config": {**QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        **QWEN_TOKENS,
    },
    "qwen3-vl-moe": {
        "model_type": "qwen3_vl_moe",
        "text_config": {**TEXT, **EXPERTS, "rope_parameters": MULTIMODAL_ROPE},
        "vision_config": {**QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        **QWEN_TOKENS,
    },
    "qwen3.5": {
        "model_type": "qwen3_5",
        "text_config": {**WIDE_HEADS, **LINEAR_ATTENTION, "rope_parameters": QWEN3_5_ROPE},
        "vision_config": {**QWEN_VISION, "num_position_embeddings": 16},
        **QWEN_TOKENS,
    },
    "qwen3.5-moe": {
        "model_type": "qwen3_5_moe",
        "text_config": {
            **WIDE_HEADS,
            **LINEAR_ATTENTION,
            **EXPERTS,
            "shared_expert_intermediate_size": 32,
            "rope_parameters": QWEN3_5_ROPE,
        },
        "vision_config": {**QWEN_VISION, "num_position_embeddings": 16},
        **QWEN_TOKENS,
    },
    "internvl": {
        "model_type": "internvl",
        "text_config": {**TEXT, "model_type": "qwen2"},
        "vision_config": {**VISION, "image_size": [16, 16], "patch_size": [4, 4]},
        "image_token_id": 5,
        "image_seq_length": 4,
    },
    "llava": {
        "model_type": "llava",
        "text_config": {**MULTI_HEAD, "model_type": "llama"},
        "vision_config": CLIP,
        "image_token_index": 5,
        "image_seq_length": 4,
    },
    "pixtral": {
        "model_type": "llava",
        "text_config": {**WIDE_HEADS, "model_type": "mistral"},
        "vision_config": {**VISION, "model_type": "pixtral"},
        "image_token_index": 5,
    },
    "llava-next": {
        "model_type": "llava_next",
        "text_config": {**TEXT, "model_type": "mistral"},
        "vision_config": CLIP,
        "image_token_index": 5,
        "image_grid_pinpoints": [[16, 16], [16, 32]],
    },
    "llava-onevision": {
        "model_type": "llava_onevision",
        "text_config": {**TEXT, "model_type": "qwen2"},
        "vision_config": SIGLIP,
        "image_token_index": 5,
        "video_token_index": 6,
        "image_grid_pinpoints": [[16, 16], [16, 32]],
    },
    "vipllava": {
        "model_type": "vipllava",
        "text_config": {**MULTI_HEAD, "model_type": "llama"},
        "vision_config": CLIP,
        "vision_feature_layers": [-1, -2],
        "image_token_index": 5,
        "image_seq_length": 4,
    },
    "chameleon": {
        "model_type": "chameleon",
        **TEXT,
        "vq_config": {
            "embed_dim": 8,
            "num_embeddings": 8,
            "latent_channels": 8,
            "resolution": 16,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
        },
        "vocabulary_map": {"<image>": 5, **{f"IMGIMG{letter}Z": 10 + i for i, letter in enumerate("ABCDEFGH")}},
    },
    "gemma3": {
        "model_type": "gemma3",
        "text_config": {**WIDE_HEADS, "layer_types": GEMMA_LAYERS, "sliding_window": 8},
        "vision_config": SIGLIP,
        "mm_tokens_per_image": 4,
        "image_token_index": 5,
        "boi_token_index": 6,
        "eoi_token_index": 7,
    },
    "gemma4": {
        "model_type": "gemma4",
        "text_config": {
            **TEXT,
            "num_hidden_layers": 6,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
            "head_dim": 16,
            "global_head_dim": 32,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "num_kv_shared_layers": 2,
            "sliding_window": 8,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 128,
        },
        "vision_config": {
            **VISION,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "position_embedding_size": 16,
            "pooling_kernel_size": 1,
        },
        "image_token_id": 5,
        "video_token_id": 6,
        "audio_token_id": 7,
    },
    "mllama": {
        "model_type": "mllama",
        "text_config": {**TEXT, "cross_attention_layers": [1]},
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
            "max_num_tiles": 1,
            "vision_output_dim": 64,
            "intermediate_layers_indices": [1],
            "supported_aspect_ratios": [[1, 1]],
        },
        "image_token_index": 5,
    },
    "llama4": {
        "model_type": "llama4",
        "text_config": {
            **TEXT,
            "head_dim": 32,
            "intermediate_size_mlp": 96,
            "num_local_experts": 2,
            "no_rope_layer_interval": 2,
            "attention_chunk_size": 16,
        },
        "vision_config": {**VISION, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
        "image_token_index": 5,
        "boi_token_index": 6,
        "eoi_token_index": 7,
    },
    "idefics2": {
        "model_type": "idefics2",
        "text_config": {**TEXT, "model_type": "mistral"},
        "vision_config": VISION,
        "perceiver_config": {
            "hidden_size": 64,
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 16,
            "num_key_value_heads": 1,
        },
        "image_token_id": 5,
    },
    "idefics3": {
        "model_type": "idefics3",
        "text_config": {**TEXT, "model_type": "llama"},
        "vision_config": {**VISION, "patch_size": 4},
        "image_token_id": 5,
        "scale_factor": 2,
    },
    "smolvlm": {
        "model_type": "smolvlm",
        "text_config": {**TEXT, "model_type": "llama"},
        "vision_config": {**VISION, "patch_size": 4},
        "image_token_id": 5,
        "scale_factor": 2,
    },
    "paligemma": {
        "model_type": "paligemma",
        "text_config": {**WIDE_HEADS, "model_type": "gemma", "num_key_value_heads": 1},
        "vision_config": SIGLIP,
        "image_token_index": 5,
        "projection_dim": 64,
        "hidden_size": 64,
    },
    "mistral3": {
        "model_type": "mistral3",
        "text_config": {**WIDE_HEADS, "model_type": "mistral"},
        "vision_config": {**VISION, "model_type": "pixtral"},
        "image_token_index": 5,
    },
    "glm4v": {
        "model_type": "glm4v",
        "text_config": {**TEXT, "rope_parameters": GLM_ROPE},
        "vision_config": {**QWEN_VISION, "image_size": 32},
        **QWEN_TOKENS,
    },
    "glm4v-moe": {
        "model_type": "glm4v_moe",
        "text_config": {
            **TEXT,
            "moe_intermediate_size": 32,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": GLM_ROPE,
        },
        "vision_config": {**QWEN_VISION, "image_size": 32},
        **QWEN_TOKENS,
    },
    "glm-ocr": {
        "model_type": "glm_ocr",
        "text_config": {**TEXT, "rope_parameters": MULTIMODAL_ROPE},
        "vision_config": {**QWEN_VISION, "image_size": 32},
        **QWEN_TOKENS,
    },
    "aya-vision": {
        "model_type": "aya_vision",
        "text_config": {**TEXT, "model_type": "cohere2", "sliding_window": 8, "layer_types": GEMMA_LAYERS},
        "vision_config": SIGLIP,
        "downsample_factor": 2,
        "image_token_index": 5,
    },
    "cohere2-vision": {
        "model_type": "cohere2_vision",
        "text_config": {**TEXT, "model_type": "cohere2", "sliding_window": 8, "layer_types": GEMMA_LAYERS},
        "vision_config": SIGLIP,
        "alignment_intermediate_size": 48,
        "image_token_id": 5,
    },
    "ernie4.5-vl": {
        "model_type": "ernie4_5_vl_moe",
        "text_config": {
            **TEXT,
            "moe_intermediate_size": [32, 32],
            "moe_k": 2,
            "moe_num_experts": 4,
            "moe_num_shared_experts": 1,
            "rope_parameters": {**MULTIMODAL_ROPE, "mrope_section": [3, 3, 2]},
        },
        "vision_config": {**QWEN_VISION, "temporal_merge_size": 2},
        "image_token_id": 5,
        "video_token_id": 6,
    },
    "deepseek-vl": {
        "model_type": "deepseek_vl",
        "text_config": {**MULTI_HEAD, "model_type": "llama"},
        "vision_config": SIGLIP,
        "image_token_id": 5,
    },
    "minicpm-v-4.6": {
        "model_type": "minicpmv4_6",
        "text_config": {**WIDE_HEADS, **LINEAR_ATTENTION, "model_type": "qwen3_5_text"},
        "vision_config": {**VISION, "insert_layer_id": 1},
        "insert_layer_id": 1,
        "image_size": 16,
        "image_token_id": 5,
        "video_token_id": 6,
    },
    "lfm2-vl": {
        "model_type": "lfm2_vl",
        "text_config": {**TEXT, "model_type": "lfm2", "layer_types": ["conv", "full_attention"] * 2},
        "vision_config": {
            **{name: value for name, value in VISION.items() if name != "image_size"},
            "model_type": "siglip2_vision_model",
            "num_patches": 4,
            "vision_use_head": False,
        },
        "projector_hidden_size": 48,
        "image_token_id": 5,
    },
    "ovis2": {
        "model_type": "ovis2",
        "text_config": {**TEXT, "model_type": "qwen2"},
        "vision_config": {**VISION, "vocab_size": 32, "num_visual_indicator_tokens": 5},
        "image_token_id": 5,
        "visual_indicator_token_ids": [6, 7, 8, 9, 10],
        "vocab_size": 128,
        "hidden_size": 64,
    },
    "phi4-multimodal": {
        "model_type": "phi4_multimodal",
        **TEXT,
        "vision_config": {**VISION, "crop_size": 16, "image_token_id": 5},
        "audio_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_blocks": 1,
            "num_attention_heads": 2,
            "ext_pw_out_channel": 32,
            "depthwise_separable_out_channel": 32,
            "nemo_conv_channels": 32,
            "input_size": 16,
            "audio_token_id": 6,
        },
    },
    "paddleocr-vl": {
        "model_type": "paddleocr_vl",
        "text_config": {**TEXT, "head_dim": 16, "rope_parameters": MULTIMODAL_ROPE},
        "vision_config": VISION,
        **QWEN_TOKENS,
    },
    "exaone4.5": {
        "model_type": "exaone4_5",
        "text_config": {
            **TEXT,
            "model_type": "exaone4",
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
        },
        "vision_config": {**QWEN_VISION, "num_key_value_heads": 2, "window_size": 32, "fullatt_block_indexes": [1]},
        "image_token_id": 5,
        "video_token_id": 6,
    },
    "video-llama-3": {
        "model_type": "video_llama_3",
        "text_config": {**TEXT, "model_type": "qwen2"},
        "vision_config": {name: value for name, value in VISION.items() if name != "image_size"},
        "image_token_id": 5,
        "video_token_id": 6,
    },
    "molmo2": {
        "model_type": "molmo2",
        "text_config": {**TEXT, "head_dim": 16, "additional_vocab_size": 16},
        **MOLMO_VISION,
    },
    # Based on OLMo, with a norm over all heads of the projection together.
    "molmo2-o": {
        "model_type": "molmo2",
        "text_config": {**TEXT, "head_dim": 16, "additional_vocab_size": 16, "qk_norm_type": "olmo"},
        **MOLMO_VISION,
    },
}


# Language models whose decoders are also used in vision-language models of other makers.
TEXT_MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **TEXT},
    "qwen3": {"model_type": "qwen3", **WIDE_HEADS},
    "qwen3-moe": {"model_type": "qwen3_moe", **WIDE_HEADS, **EXPERTS},
    "gemma2": {"model_type": "gemma2", **WIDE_HEADS, "layer_types": GEMMA_LAYERS, "sliding_window": 8},
    "gemma3n": {
        "model_type": "gemma3n_text",
        **WIDE_HEADS,
        "layer_types": GEMMA_LAYERS,
        "sliding_window": 8,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 128,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "phi3": {"model_type": "phi3", **TEXT},
    "cohere": {"model_type": "cohere", **TEXT, "use_qk_norm": True},
}

# Families whose published tensor names differ from the names of transformers' modules; both are in use.
RENAMED = (
    "qwen2-vl",
    "qwen2.5-vl",
    "internvl",
    "llava",
    "pixtral",
    "llava-next",
    "llava-onevision",
    "vipllava",
    "gemma3",
    "mllama",
    "paligemma",
    "mistral3",
    "aya-vision",
    "ernie4.5-vl",
    "paddleocr-vl",
    "molmo2",
)
