"""One start: a setup by Ferry's command, the trainer's own program on what it left, and its checkpoint back to HF."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import commands
from .lean_host import INSTEAD, OFF_CUDA, WITHOUT
from .models import hf_losses
from .settings import Setting

STEPS = 5
_LOSS = re.compile(r"iteration +(\d+)/.*? lm loss: (\S+)")
_VALIDATION = re.compile(r"validation loss at iteration \d+ on validation set \| lm loss value: (\S+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What the trainer said of itself, and its ranks of their memory."""

    log: str
    losses: dict[int, float]
    """By iteration, from 1."""
    ranks: list[dict[str, Any]]
    seen: list[torch.Tensor]
    """Tokens that went into the model in the first step, of each rank."""

    @property
    def validation(self) -> float:
        """The loss after the last step, on the same batch; a run that was started again has no validation left."""
        return float(_VALIDATION.findall(self.log)[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A setting on a model. `folder` holds all that it leaves."""

    setting: Setting
    hf: Path
    batch: dict[str, np.ndarray]
    folder: Path
    device: str
    compiles: bool
    """The host has the compiler that torch.compile asks for."""

    @property
    def target(self) -> Path:
        """The directory that is set up."""
        return self.folder / "setup"

    @property
    def checkpoints(self) -> Path:
        """Where the run saves: the setup says so."""
        return self.folder / "setup-checkpoints"

    @property
    def exported(self) -> Path:
        """The trained model."""
        return self.folder / "exported"

    def set_up(self) -> dict[str, Any]:
        """By the command. What `--plan` said of it, the estimate of memory among it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        plan = commands.planned(*self._setup())["setup"]
        commands.ferry(*self._setup())
        return plan

    def train(self, steps: int = STEPS, *, saves: bool) -> Trained:
        """Megatron's training program with the setup's argument file, or our helpers with adapters."""
        report = self.folder / f"report-{steps}"
        report.mkdir(exist_ok=True)
        np.savez(self.folder / "batch.npz", **self.batch)
        if self.setting.adapters:
            program, words = "lora", [*self._of_adapters(steps, report)]
        else:
            program, words = "pretrain", [*self._given(saves), *self._of_host(), *self._of_run(steps, report)]
        module = f"tests.benchmarks.train_start.{program}"
        log = commands.ranks(
            module, self.setting.world_size, words, self.folder / f"log-{steps}.txt", self._environment()
        )
        ranks = range(self.setting.world_size)
        if not all((report / f"rank-{rank}.json").exists() for rank in ranks):  # Megatron exits with 0 on some errors
            raise RuntimeError(f"{module} ended before its end:\n" + "\n".join(log.splitlines()[-8:]))
        return Trained(
            log=log,
            losses={int(number): float(loss) for number, loss in _LOSS.findall(log)},
            ranks=[json.loads((report / f"rank-{rank}.json").read_text()) for rank in ranks],
            seen=[torch.cat(torch.load(report / f"seen-{rank}.pt")) for rank in ranks],
        )

    def export(self) -> dict[str, float]:
        """The trained checkpoint as HF's model, an adapter folded in; that model's loss."""
        if self.setting.adapters:
            words = ["merge", str(self.hf), str(self.exported), "--adapter", str(self.checkpoints)]
        else:
            words = ["export", str(self.checkpoints), str(self.exported), "--hf-config", str(self.target / "hf")]
        commands.ferry(*words, "--local")
        return hf_losses(self.exported, self.batch, self.device)

    def clear(self) -> None:
        """Checkpoints are large."""
        for path in (self.target, self.checkpoints, self.exported):
            shutil.rmtree(path, ignore_errors=True)

    def _setup(self) -> list[str]:
        setting = self.setting
        words = ["setup", str(self.hf), str(self.target), "--profile", "verl" if setting.adapters else "megatron-lm"]
        words += ["--tp", str(setting.tp), "--pp", str(setting.pp), "--ep", str(setting.ep)]
        words += ["--world-size", str(setting.world_size), "--recompute", setting.recompute, "--dtype", setting.dtype]
        words += ["--sequence-length", str(self.batch["tokens"].shape[1]), "--local"]
        if setting.ep > 1:
            words += ["--etp", "1"]
        if setting.sequence_parallel is not None:
            words += ["--sequence-parallel" if setting.sequence_parallel else "--no-sequence-parallel"]
        if setting.adapters:
            words += ["--peft", "lora", "--peft-dim", "16", "--init-adapter"]
        return words

    def _given(self, saves: bool) -> Iterator[str]:
        """The profile's arguments as its start script reads them, but for those that this host cannot have."""
        unwanted = WITHOUT if saves else WITHOUT | {"--save", "--save-interval"}
        for line in (self.target / "arguments.txt").read_text().splitlines():
            group = shlex.split(line)
            if group[0] not in unwanted:
                yield from group

    def _of_host(self) -> Iterator[str]:
        for group in (*INSTEAD, *(() if self.device == "cuda" else OFF_CUDA)):
            yield from group

    def _of_run(self, steps: int, report: Path) -> Iterator[str]:
        samples = self.setting.micro_batches * self.setting.replicas
        yield from ("--global-batch-size", str(samples), "--train-iters", str(steps), "--save-interval", str(STEPS))
        yield from ("--lr", "3e-4", "--lr-decay-style", "constant", "--override-opt-param-scheduler")
        yield from ("--mock-data", "--num-workers", "0")
        yield from ("--eval-iters", "1", "--eval-interval", "1000", "--log-interval", "1")
        yield from ("--batch", str(self.folder / "batch.npz"), "--report", str(report))
        yield from ("--attention", self.setting.attention)

    def _of_adapters(self, steps: int, report: Path) -> Iterator[str]:
        yield from ("--setup", str(self.target), "--save", str(self.checkpoints), "--tp", str(self.setting.tp))
        yield from ("--batch", str(self.folder / "batch.npz"), "--report", str(report), "--steps", str(steps))
        yield from ("--attention", self.setting.attention)

    def _environment(self) -> dict[str, str]:
        # The program insists on the first with tensor parallelism, up to Hopper; the setup's start script has it too.
        values = {"CUDA_DEVICE_MAX_CONNECTIONS": "1", "PYTHONWARNINGS": "ignore"}
        if self.device == "cpu":
            values |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        if not self.compiles:
            values["TORCHDYNAMO_DISABLE"] = "1"
        return values
