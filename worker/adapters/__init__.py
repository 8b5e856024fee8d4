"""LoRA semantics: adapters read, matched to their base, merged."""
