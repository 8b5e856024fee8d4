"""An import loaded by Megatron over NCCL at several TP sizes, its logits against HF's: for a host with GPUs.

`python -m tests.benchmarks.nccl_load HF IMPORT --tp 1 2` from the repository's root. Prints; asserts nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_TOKENS = 64


def main() -> None:
    """Run HF once, then Megatron at each size in processes of its own."""
    parser = argparse.ArgumentParser(prog="nccl_load", description=__doc__)
    parser.add_argument("hf", type=Path)
    parser.add_argument("mcore", type=Path)
    parser.add_argument("--tp", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rank", type=int, nargs=3, metavar=("RANK", "SIZE", "NUMBER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.hf.exists():
        _make(options.hf, options.mcore)
    if options.rank:
        rank, size, _ = options.rank
        _rank(options.mcore, rank, size, options.dtype)
        return
    with tempfile.TemporaryDirectory(prefix="ferry-nccl-") as temporary:
        os.environ["FERRY_MEETING"] = temporary
        _hf(options.hf, Path(temporary) / "hf.pt", options.dtype)
        for number, size in enumerate(options.tp):
            command = [sys.executable, "-m", "tests.benchmarks.nccl_load", str(options.hf), str(options.mcore)]
            more = ["--dtype", options.dtype]
            ranks = [
                subprocess.Popen([*command, *more, "--rank", str(rank), str(size), str(number)]) for rank in range(size)
            ]
            if any(rank.wait() for rank in ranks):
                print(f"TP={size}: failed")


def _make(hf: Path, mcore: Path) -> None:
    """A random Llama of 1.2 billion parameters, as HF initialises it, and our import of it."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=32001,
        initializer_range=0.05,
    )
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM
    auto.from_config(config, dtype=torch.float32).save_pretrained(hf)
    spec = json.dumps({"kind": "import", "source": str(hf), "target": str(mcore)})
    subprocess.run([sys.executable, "-m", "worker", "run", spec, "--copy-processes", "8"], check=True)


def _tokens(vocabulary: int) -> Any:
    import torch

    return torch.tensor([[(37 * place + 11 * row) % vocabulary for place in range(_TOKENS)] for row in range(2)])


def _hf(folder: Path, answer: Path, dtype: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    config = json.loads((folder / "config.json").read_text())
    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="eager")
    with torch.no_grad():
        logits = model.cuda().eval()(_tokens(config["vocab_size"]).cuda()).logits
    torch.save(logits.float().cpu(), answer)


def _rank(mcore: Path, rank: int, size: int, dtype: str) -> None:
    import torch
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
    from torch import distributed

    from worker.integration import for_this_host, load_model_config

    torch.cuda.set_device(rank)
    meeting = Path(os.environ["FERRY_MEETING"])
    distributed.init_process_group("nccl", init_method=f"file://{meeting}/store-{size}", rank=rank, world_size=size)
    parallel_state.initialize_model_parallel(size)
    model_parallel_cuda_manual_seed(0)
    config: Any = for_this_host(load_model_config(mcore))
    config.parallel_output = False
    transformer = config.transformer
    transformer.tensor_model_parallel_size = size
    transformer.params_dtype = transformer.pipeline_dtype = getattr(torch, dtype)
    transformer.bf16, transformer.fp16 = dtype == "bfloat16", dtype == "float16"
    config.finalize()
    model: Any = config.get_builder_cls()(config).build_model(ProcessGroupCollection.use_mpu_process_groups())
    model = model.to(transformer.params_dtype).cuda().eval()
    folder = mcore / (mcore / "latest_checkpointed_iteration.txt").read_text().strip()
    started = time.monotonic()
    metadata = dist_checkpointing.load_content_metadata(str(folder))
    state: Any = dist_checkpointing.load({"model": model.sharded_state_dict(metadata=metadata)}, str(folder))
    model.load_state_dict(state["model"], strict=True)
    seconds = time.monotonic() - started
    reference = torch.load(meeting / "hf.pt")
    tokens = _tokens(reference.shape[-1]).cuda()
    with torch.no_grad():
        logits = model(tokens, torch.arange(_TOKENS, device="cuda").expand_as(tokens), None)
    ours = logits[..., : reference.shape[-1]].float().cpu()
    if rank == 0:
        difference = (ours - reference).abs().max().item()
        same = (ours.argmax(-1) == reference.argmax(-1)).float().mean().item()
        scale = (reference.max() - reference.min()).item()
        print(
            f"TP={size}: loaded in {seconds:.2f} s; largest logit difference {difference:.3g} of {scale:.3g}, "
            f"the same first choice at {same:.1%}",
            flush=True,
        )
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
