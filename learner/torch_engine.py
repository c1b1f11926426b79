"""The one-process training engine: plain torch, AdamW, gradients accumulated over microbatches."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoTokenizer

from common.errors import SettingsError
from common.pretrained import pretrained
from common.settings import Settings
from learner.batch_loss import BatchLoss
from learner.lora import export_adapter, merged
from learner.model import EXPLODED, finite_in, load_model, published_tensors, trained_parameters
from learner.packing import Microbatch, count_samples, tokens_by_objective
from learner.schedule import learning_rate
from learner.scorer import Scorer
from learner.tensor_files import read_tensors, write_tensors
from learner.token_stats import TokenStats

log = structlog.get_logger()

MODEL = "model"
OPTIMIZER = "optimizer"
"""Stems of the files of a checkpoint."""
ADAPTER_FOLDER = "adapter"
"""Of an exported LoRA run: the adapter alone, beside the model that it is merged into."""
EXPORTED_FILE = "spark.json"


class TorchEngine:
    """Owns the trained model. ``policy_version`` is the number of optimizer steps made."""

    def __init__(self, settings: Settings) -> None:
        self.policy_version = 0
        self.sample_losses: NDArray[np.float64] | None = None
        self._settings = settings
        self.model: Any = load_model(settings)
        self.reference: Any = load_model(settings, trained=False) if settings.loss.kl_coef > 0 else None
        self._scorer = Scorer(self.model, settings)
        frozen = Scorer(self.reference, settings) if self.reference is not None else None
        self._loss = BatchLoss(self._scorer, frozen, settings.loss)
        self._optimizer = torch.optim.AdamW(
            trained_parameters(self.model).values(),
            lr=settings.learner.lr,
            betas=settings.learner.adam_betas,
            weight_decay=settings.learner.weight_decay,
            fused=True,
        )

    def use(self, settings: Settings) -> None:
        """Other settings from the next step on."""
        self._settings = settings
        self._loss.use(settings.loss)

    def old_logprobs(self, microbatches: Sequence[Microbatch]) -> list[Tensor]:
        """Log-probs of the completion tokens, microbatch by microbatch as ``step`` takes them."""
        return [self._loss.logprobs(batch) for batch in self._scorer.arrange(microbatches)]

    def step(self, microbatches: Sequence[Microbatch], old: Sequence[Tensor] | None = None) -> dict[str, float]:
        """One optimizer step on the joint batch; returns its metrics. ``old``: what ``ppo`` takes the ratio to.

        Raises SettingsError when it leaves weights that are not finite.
        """
        learner, stats = self._settings.learner, TokenStats()
        counts = tokens_by_objective(microbatches)
        total = torch.zeros((), device=self._scorer.device)
        for index, batch in enumerate(self._scorer.arrange(microbatches)):
            part = self._loss(batch, counts, None if old is None else old[index])
            part.loss.backward()  # type: ignore[no-untyped-call]
            total += part.loss.detach()
            stats.add(part.columns)
        rate = learning_rate(self.policy_version + 1, learner)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        norm = torch.nn.utils.clip_grad_norm_(trained_parameters(self.model).values(), learner.grad_clip)
        finite = bool(torch.isfinite(norm))  # the first wait for the device in a step
        if finite:
            self._optimizer.step()
            if not finite_in(trained_parameters(self.model).values(), self._published_dtype):
                raise SettingsError(EXPLODED.format(self.policy_version + 1, self._published_dtype, rate))
        else:  # one such step would poison the weights, and every checkpoint after it
            log.warning("learner.step_skipped", reason="the gradient is not finite", loss=total.item())
        self._optimizer.zero_grad(set_to_none=True)
        self.policy_version += 1
        self.sample_losses = stats.sample_losses(count_samples(microbatches))
        return {
            "loss": total.item(),
            "grad_norm": norm.item(),
            "lr": rate,
            "skipped": float(not finite),
            **stats.summary(self._settings.loss.clip_low),
        }

    def write_weights(self, folder: Path) -> None:
        """What actors run, in their dtype: tied parameters once, in files of at most about 2 GB.

        An adapter stays in float32: it is small, and rounded once, where it is merged.
        """
        write_tensors(published_tensors(self.model), folder, MODEL, self._published_dtype)

    @property
    def _published_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self._settings.model.dtype)
        return torch.float32 if self._settings.lora.rank > 0 else dtype

    def write_checkpoint(self, folder: Path) -> None:
        """Parameters and optimizer state in float32."""
        trained = trained_parameters(self.model)
        write_tensors({name: parameter.detach() for name, parameter in trained.items()}, folder, MODEL)
        state = {
            f"{name}/{key}": value
            for name, parameter in trained.items()
            for key, value in self._optimizer.state[parameter].items()
        }
        write_tensors(state, folder, OPTIMIZER)

    def read_checkpoint(self, folder: Path, policy_version: int) -> None:
        saved, live = dict(read_tensors(folder, MODEL)), trained_parameters(self.model)
        if {name: value.shape for name, value in saved.items()} != {name: value.shape for name, value in live.items()}:
            raise SettingsError(
                f"checkpoint {folder.name} is of another model than model.path={self._settings.model.path!r} "
                f"with lora.rank={self._settings.lora.rank}; name those the run was started with, "
                "or start under a new run.name"
            )
        with torch.no_grad():
            for name, parameter in live.items():
                parameter.copy_(saved[name])
        for path, value in read_tensors(folder, OPTIMIZER):
            name, _, key = path.rpartition("/")
            # AdamW with fused=True keeps all of its state, the step counter too, beside the parameter
            self._optimizer.state[live[name]][key] = value.to(live[name].device)
        self.policy_version = policy_version

    def export(self, folder: Path) -> None:
        """A Hugging Face directory that ``from_pretrained`` loads, with tokenizer and chat template.

        An adapter is merged into it, and is in ``adapter/`` alone too. ``spark.json`` says which policy version it is;
        it is there only when all the rest is.
        """
        os.environ.setdefault("DS_ACCELERATOR", self._scorer.device.type)  # saving imports DeepSpeed, which guesses
        (folder / EXPORTED_FILE).unlink(missing_ok=True)
        tokenizer: Any = pretrained(AutoTokenizer.from_pretrained, self._settings.model)
        if self._settings.lora.rank > 0:
            (folder / ADAPTER_FOLDER).mkdir(parents=True, exist_ok=True)
            export_adapter(self.model, self._settings.lora, self._settings.model.path, folder / ADAPTER_FOLDER)
            merged(self.model).save_pretrained(folder)
        else:
            self.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        version = json.dumps({"policy_version": self.policy_version})
        (folder / EXPORTED_FILE).write_text(version + "\n", encoding="utf-8")
