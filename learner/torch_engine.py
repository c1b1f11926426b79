"""The one-process training engine: plain torch, AdamW, gradients accumulated over microbatches.

Shape letters: R rows, L padded length, N completion tokens of a microbatch, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from common.errors import SettingsError
from common.pretrained import pretrained
from common.settings import Settings
from learner.loss import kl_to_reference, policy_loss, token_weights
from learner.packing import Microbatch, tokens_by_objective
from learner.schedule import learning_rate
from learner.token_stats import TokenStats

log = structlog.get_logger()

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
EXPORTED_FILE = "spark.json"


@dataclass(frozen=True, slots=True, eq=False)
class _Targets:
    """The completion tokens of a microbatch, flattened to [N]."""

    logprobs: Tensor
    behaviour: Tensor
    advantages: Tensor
    objectives: Tensor
    staleness: Tensor
    entropy: Tensor


class TorchEngine:
    """Owns the trained model. ``policy_version`` is the number of optimizer steps made."""

    def __init__(self, settings: Settings) -> None:
        disable_progress_bar()  # type: ignore[no-untyped-call]
        self.policy_version = 0
        self._settings = settings
        self.model: Any = self._load()
        self.reference: Any = self._load() if settings.loss.kl_coef > 0 else None
        parameters = [parameter for _, parameter in self.model.named_parameters()]
        self._optimizer = torch.optim.AdamW(
            parameters,
            lr=settings.learner.lr,
            betas=settings.learner.adam_betas,
            weight_decay=settings.learner.weight_decay,
            fused=True,
        )

    def _load(self) -> Any:
        model: Any = pretrained(
            AutoModelForCausalLM.from_pretrained,
            self._settings.model,
            dtype=torch.float32,  # of the learner, whatever actors use: at RL rates bfloat16 weights would never move
            attn_implementation=self._settings.model.attn_implementation,
            use_safetensors=True,
        )
        return model.eval()  # no dropout: the ratio compares the same function at two points in time

    def old_logprobs(self, microbatches: Sequence[Microbatch]) -> list[Tensor]:
        """Log-probs [N] of every microbatch under the weights as they are now."""
        with torch.no_grad():
            return [self._targets(self.model, batch).logprobs for batch in microbatches]

    def step(self, microbatches: Sequence[Microbatch], old: Sequence[Tensor] | None = None) -> dict[str, float]:
        """One optimizer step on the joint batch; returns its metrics. ``old``: what ``ppo`` takes the ratio to."""
        loss_settings, learner = self._settings.loss, self._settings.learner
        counts = torch.from_numpy(tokens_by_objective(microbatches))
        stats = TokenStats()
        total = 0.0
        for index, batch in enumerate(microbatches):
            targets = self._targets(self.model, batch)
            old_logprobs = targets.behaviour if old is None else old[index]
            per_token = policy_loss(
                targets.logprobs, old_logprobs, targets.behaviour, targets.advantages, loss_settings
            )
            if self.reference is not None:
                per_token = per_token + loss_settings.kl_coef * self._kl(batch, targets.logprobs)
            loss = (per_token * token_weights(targets.objectives, counts, loss_settings)).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
            stats.add(
                targets.logprobs.detach(), targets.behaviour, targets.entropy, targets.objectives, targets.staleness
            )
        rate = learning_rate(self.policy_version + 1, learner)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), learner.grad_clip)
        finite = bool(torch.isfinite(norm))
        if finite:
            self._optimizer.step()
        else:  # one such step would poison the weights, and every checkpoint after it
            log.warning("learner.step_skipped", reason="the gradient is not finite", loss=total)
        self._optimizer.zero_grad(set_to_none=True)
        self.policy_version += 1
        return {
            "loss": total,
            "grad_norm": float(norm),
            "lr": rate,
            "skipped": float(not finite),
            **stats.summary(loss_settings.clip_low),
        }

    def _kl(self, batch: Microbatch, logprobs: Tensor) -> Tensor:
        with torch.no_grad():
            reference = self._targets(self.reference, batch).logprobs
        return kl_to_reference(logprobs, reference)

    def _targets(self, model: Any, batch: Microbatch) -> _Targets:
        ids_RL = torch.from_numpy(batch.token_ids_RL)
        output = model(input_ids=ids_RL, attention_mask=torch.from_numpy(batch.attention_RL), use_cache=False)
        predicted_RL = torch.from_numpy(batch.is_target_RL)[:, 1:]
        logprobs_NV = torch.log_softmax(output.logits[:, :-1][predicted_RL].float(), dim=-1)
        row_N = predicted_RL.nonzero()[:, 0]
        with torch.no_grad():
            entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(dim=-1)
        return _Targets(
            logprobs=logprobs_NV.gather(1, ids_RL[:, 1:][predicted_RL][:, None])[:, 0],
            behaviour=torch.from_numpy(batch.behaviour_logprobs_RL)[:, 1:][predicted_RL],
            advantages=torch.from_numpy(batch.advantages_R)[row_N],
            objectives=torch.from_numpy(batch.objectives_R)[row_N],
            staleness=torch.from_numpy(batch.staleness_R)[row_N],
            entropy=entropy_N,
        )

    def write_weights(self, folder: Path) -> None:
        """The parameters, tied ones once, as safetensors."""
        _save({n: p.detach().contiguous() for n, p in self.model.named_parameters()}, folder / MODEL_FILE)

    def write_checkpoint(self, folder: Path) -> None:
        """Parameters and optimizer state, all as safetensors: nothing that a loader would have to execute."""
        self.write_weights(folder)
        state = {
            f"{name}/{key}": value.contiguous()
            for name, parameter in self.model.named_parameters()
            for key, value in self._optimizer.state[parameter].items()
        }
        _save(state, folder / OPTIMIZER_FILE)

    def read_checkpoint(self, folder: Path, policy_version: int) -> None:
        saved = load_file(folder / MODEL_FILE)
        live = dict(self.model.named_parameters())
        if {name: value.shape for name, value in saved.items()} != {name: value.shape for name, value in live.items()}:
            raise SettingsError(
                f"checkpoint {folder.name} is of another model than model.path={self._settings.model.path!r}; "
                "name the model the run was started with, or start under a new run.name"
            )
        with torch.no_grad():
            for name, parameter in live.items():
                parameter.copy_(saved[name])
        for path, value in load_file(folder / OPTIMIZER_FILE).items():
            name, _, key = path.rpartition("/")
            self._optimizer.state[self.model.get_parameter(name)][key] = value
        self.policy_version = policy_version

    def export(self, folder: Path) -> None:
        """A Hugging Face directory that ``from_pretrained`` loads, with tokenizer and chat template.

        ``spark.json`` says which policy version it is; it is there only when all the rest is.
        """
        (folder / EXPORTED_FILE).unlink(missing_ok=True)
        tokenizer: Any = pretrained(AutoTokenizer.from_pretrained, self._settings.model)
        self.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        version = json.dumps({"policy_version": self.policy_version})
        (folder / EXPORTED_FILE).write_text(version + "\n", encoding="utf-8")


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file. Raises OSError, a full disk among others, which safetensors has its own error for."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
