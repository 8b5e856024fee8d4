"""HF config fields that no decoder's weights or forward pass depend on, each with its why; and what may be null."""

from .fields import Ignored

_GENERATION = "a generation default; the model's forward pass does not read it"
_LABELS = "names the classes of a classification head, which a causal model lacks"
_RECORD = "a record of who wrote the file, not of the model"
_OUTPUT = "chooses what forward() returns beside the logits"

WITHOUT_EFFECT = (
    Ignored("architectures", "names the class; the family is chosen by model_type"),
    Ignored("model_type", "chose this family"),
    Ignored("_name_or_path", _RECORD),
    Ignored("name_or_path", _RECORD),
    Ignored("transformers_version", _RECORD),
    Ignored("transformers.js_config", "read by a JavaScript runtime alone"),
    Ignored("unsloth_version", _RECORD),
    Ignored("unsloth_fixed", _RECORD),
    Ignored("bos_token_id", _GENERATION),
    Ignored("eos_token_id", _GENERATION),
    Ignored("pad_token_id", "masks the loss of one embedding row in training; Megatron takes it from the tokenizer"),
    Ignored("sep_token_id", _GENERATION),
    Ignored("use_cache", "chooses whether keys and values are kept between steps"),
    Ignored("pretraining_tp", "splits a product into slices and adds them up: the same sum; transformers 5 ignores it"),
    Ignored("output_attentions", _OUTPUT),
    Ignored("output_hidden_states", _OUTPUT),
    Ignored("return_dict", _OUTPUT),
    Ignored("id2label", _LABELS),
    Ignored("label2id", _LABELS),
    Ignored("problem_type", _LABELS),
    Ignored("chunk_size_feed_forward", "read by encoder models alone"),
    Ignored("is_encoder_decoder", "false for every decoder of these families"),
    Ignored("_attn_implementation_autoset", "chooses a kernel, not the mathematics"),
    Ignored("attn_implementation", "chooses a kernel, not the mathematics"),
)

NULLS = ("dtype", "torch_dtype", "quantization_config", "compression_config", "rope_parameters", "rope_scaling")
"""Fields whose null every HF class reads as if they were absent."""
