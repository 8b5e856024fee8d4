"""The whole of Ferry on a real model: SmolLM2 imported and exported over HTTP, compared bit for bit, made to speak."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

from smollm2 import make_smollm2

from api.cli.remote import run_remote
from api.cli.tables import summary
from api.client import Client
from worker.dispatch.tied import PROJECT, tied
from worker.jobs.spec import ExportSpec, ImportSpec
from worker.jobs.state import CheckpointResult

PROMPT = "What is the capital of France? Answer in one sentence."


def main() -> None:
    """Everything lies under demo-data/ afterwards; outputs of an earlier run are replaced."""
    data = Path(os.environ.get("FERRY_DEMO_DATA", PROJECT / "demo-data")).absolute()
    data.mkdir(exist_ok=True)
    say("SmolLM2-135M-Instruct as a Hugging Face checkpoint")
    original = make_smollm2(data / "smollm2-hf")
    megatron, exported = data / "smollm2-megatron", data / "smollm2-exported"
    for output in (megatron, exported):
        shutil.rmtree(output, ignore_errors=True)
    with service(data) as client:
        say(f"import and export over {client.base_url}")
        convert(client, ImportSpec(source="demo:smollm2-hf", target="demo:smollm2-megatron"))
        convert(client, ExportSpec(source="demo:smollm2-megatron", target="demo:smollm2-exported"))
    say("the exported weights against the imported ones")
    print(f"  {compare(original, exported)} tensors, every bit the same")
    say("the exported folder, loaded by transformers")
    print(f"  > {PROMPT}\n  {generate(exported)}")
    say("where everything lies")
    for path in (original, megatron, exported, data / "service" / "logs"):
        print(f"  {path}")


@contextlib.contextmanager
def service(data: Path) -> Generator[Client]:
    """`ferry up` on a free port with `data` as its root; it ends with the block, or with this process."""
    log = data / "ferry-up.log"
    command = [sys.executable, "-m", "worker", "up", "--root", f"demo={data}", "--port", "0"]
    # A broker of the user's is left alone: the demo is its own.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FERRY_")}
    with log.open("w") as out:
        process = subprocess.Popen(
            tied([*command, "--data", data / "service"]), cwd=PROJECT, stdout=out, stderr=out, env=environment
        )
    try:
        with Client(address(process, log)) as client:
            yield client
    finally:
        process.terminate()
        process.wait()


def address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """What the service says once it is ready; ends the demo where it never does."""
    deadline = time.monotonic() + 90
    while not (greeting := re.search(r"address\s+(\S+)", log.read_text())):
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"ferry up did not start:\n{log.read_text()}")
        time.sleep(0.05)
    return greeting[1]


def convert(client: Client, spec: ImportSpec | ExportSpec) -> None:
    """Submit, show the progress, tell the result."""
    result = run_remote(client, spec)
    assert isinstance(result, CheckpointResult)
    print(f"  {spec.kind}: {summary(result)}")


def compare(one: Path, other: Path) -> int:
    """The number of tensors, all equal in name, dtype, shape and every byte; read by the safetensors library."""
    import torch
    from safetensors.torch import load_file

    left, right = (load_file(folder / "model.safetensors") for folder in (one, other))
    if left.keys() != right.keys():
        sys.exit(f"other tensors: {left.keys() ^ right.keys()}")
    for name, tensor in left.items():
        twin = right[name]
        same = tensor.dtype == twin.dtype and tensor.shape == twin.shape
        if not same or not torch.equal(tensor.view(torch.int16), twin.view(torch.int16)):
            sys.exit(f"tensor {name} differs")
    return len(left)


def generate(folder: Path) -> str:
    """The model's answer to the prompt, by its own chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # Many CPUs emulate bf16, five times slower; widening it changes no weight.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    messages = [{"role": "user", "content": PROMPT}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=24, do_sample=False)  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def say(text: str) -> None:
    """A heading."""
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    main()
