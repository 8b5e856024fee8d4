"""Requests that the OpenAPI page offers for trying."""

from fastapi.openapi.models import Example

SUBMIT: dict[str, Example] = {
    "import": {
        "summary": "Hugging Face folder to Megatron-Core checkpoint",
        "value": {
            "spec": {"kind": "import", "source": "here:SmolLM2-135M-Instruct", "target": "here:smollm2-megatron"},
            "labels": {"team": "pretraining"},
        },
    },
    "export": {
        "summary": "Megatron-Core checkpoint to Hugging Face folder",
        "value": {"spec": {"kind": "export", "source": "here:smollm2-megatron", "target": "here:smollm2-back"}},
    },
    "merge": {
        "summary": "A base with LoRA adapters folded into its weights",
        "value": {
            "spec": {
                "kind": "merge",
                "source": "here:SmolLM2-135M-Instruct",
                "target": "here:smollm2-merged",
                "adapters": [{"path": "here:my-adapter", "weight": 1.0}],
                "verify": ["tensors"],
            }
        },
    },
    "adapter": {
        "summary": "A PEFT adapter to a Megatron adapter; `action` may be export or extract too",
        "value": {
            "spec": {
                "kind": "adapter",
                "action": "import",
                "source": "here:my-adapter",
                "target": "here:my-adapter-megatron",
                "base": "here:SmolLM2-135M-Instruct",
            }
        },
    },
    "setup": {
        "summary": "A directory that a trainer starts from",
        "value": {
            "spec": {
                "kind": "setup",
                "source": "here:SmolLM2-135M-Instruct",
                "target": "here:smollm2-training",
                "profile": "megatron-lm",
                "parallelism": {"tp_size": 3, "pp_size": 2},
                "verify": ["tensors"],
            }
        },
    },
    "verify": {
        "summary": "Two checkpoints, of any formats, tensor by tensor",
        "value": {"spec": {"kind": "verify", "source": "here:SmolLM2-135M-Instruct", "against": "here:smollm2-back"}},
    },
    "config": {
        "summary": "Megatron's GPTModelConfig for a Hugging Face config",
        "value": {"spec": {"kind": "config", "source": "here:SmolLM2-135M-Instruct"}},
    },
}
