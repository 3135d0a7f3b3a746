"""The fields of a Hugging Face `config.json`, by what they mean for the model.

Tables only; `hf_config` reads and writes by them.
"""

from typing import Any

NEEDED = {
  "vocab_size": int,
  "hidden_size": int,
  "intermediate_size": int,
  "num_hidden_layers": int,
  "num_attention_heads": int,
  "max_position_embeddings": int,
  "rms_norm_eps": float,
}
# What transformers takes when the field is absent or null.
OPTIONAL = {
  "num_key_value_heads": int,
  "head_dim": int,
  "tie_word_embeddings": bool,
  "initializer_range": float,
}
ROPE_FIELDS = (
  "rope_theta",
  "rope_scaling",
  "rope_parameters",
  "partial_rotary_factor",
  "original_max_position_embeddings",
)
# Fields that say nothing of what is computed from token ids.
INERT = frozenset(
  (
    # what it is, and who wrote it
    "model_type",
    "transformers_version",
    "auto_map",
    "_name_or_path",
    "name_or_path",
    "unsloth_fixed",
    "unsloth_version",
    "transformers.js_config",
    # special tokens, which belong to the vocabulary
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "unk_token_id",
    # how it is run
    "use_cache",
    "return_dict",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_autoset",
    # classification
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "task_specific_params",
    # sampling
    "max_length",
    "min_length",
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "num_beams",
    "repetition_penalty",
  )
)
# Fields that change nothing as long as they have one of these values.
ACCEPTED: dict[str, tuple[Any, ...]] = {
  "hidden_act": ("silu", "swish"),
  "attention_bias": (False,),
  "mlp_bias": (False,),
  "lm_head_bias": (False,),
  # The model is read to be trained without dropout, and without it to be sampled.
  "attention_dropout": (0,),
  "resid_pdrop": (0,),
  "embd_pdrop": (0,),
  "pretraining_tp": (1,),
  "full_attn_mod": (1,),
  "interpolate_factor": (1,),
  "is_llama_config": (True,),
  "rope_interleaved": (False,),
  "output_hidden_states": (False,),
  "output_attentions": (False,),
  "torchscript": (False,),
  "is_encoder_decoder": (False,),
  "is_decoder": (False, True),
  "add_cross_attention": (False,),
  "cross_attention_hidden_size": (),
  "tie_encoder_decoder": (False,),
  "tie_last_hidden_states": (False, True),
  "chunk_size_feed_forward": (0,),
  "layer_types": (),
  "pruned_heads": ({},),
  "per_layer_config": ({},),
  "quantization_config": (),
}
# Family -> its class in transformers, and the rope types that it computes.
CLASSES = {"phi3": "Phi3ForCausalLM", "llama": "LlamaForCausalLM"}
ROPE_TYPES = {
  "phi3": ("default", "longrope"),
  "llama": ("default", "linear", "llama3"),
}
ROPE_ALIASES = {"su": "longrope"}
# What stands in a dict of rope_scaling or rope_parameters of each type.
SCALING_FIELDS = {
  "default": (),
  "linear": ("factor",),
  "llama3": (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
  ),
  "longrope": ("short_factor", "long_factor"),
}
# Of transformers up to 4 and from 5 on; a file may have both.
DTYPE_FIELDS = ("torch_dtype", "dtype")
COMPUTE_DTYPES = {
  "bfloat16": "bfloat16",
  "float32": "float32",
  "float16": "float32",  # holds every float16 number; bfloat16 does not
}
# transformers' Phi3Config assumes it where the file says nothing.
PHI3_ORIGINAL = 4096
