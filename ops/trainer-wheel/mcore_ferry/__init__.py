"""Ferry for trainers: mapping between Hugging Face and Megatron-Core, and what loads and builds its imports."""
