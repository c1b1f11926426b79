"""The engine of several processes: DeepSpeed's ZeRO 2 and 3.

Every method is collective (``learner.ranks``): all ranks call it, with the same arguments, and only rank 0 reads and
writes files. What it writes is what ``TorchEngine`` writes, so that either goes on from the other's checkpoints, and
from those of any number of ranks.

Shape letters: N completion tokens of a microbatch.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import structlog
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoTokenizer

from common.errors import SettingsError
from common.pretrained import pretrained
from common.settings import Settings
from learner.batch_loss import BatchLoss
from learner.model import EXPLODED, device_of, load_model
from learner.packing import Microbatch, count_samples, empty_microbatch, tokens_by_objective
from learner.ranks.deal import deal, passes
from learner.ranks.exchange import collect, total
from learner.ranks.place import Place
from learner.schedule import learning_rate
from learner.scorer import Scorer
from learner.shards import Shards, ShardWriter
from learner.token_stats import TokenColumns, TokenStats
from learner.torch_engine import EXPORTED_FILE, MODEL, OPTIMIZER
from learner.zero import ZeroModel

log = structlog.get_logger()

SENT: Final = ("logprobs", "entropy", "kl_reference", "losses")
"""Columns that the rank knows which ran the batch."""


class DeepSpeedEngine:
    """This rank's part of the trained model. ``policy_version`` is the number of optimizer steps made."""

    def __init__(self, settings: Settings, place: Place) -> None:
        self.policy_version = 0
        self.sample_losses: NDArray[np.float64] | None = None
        self._settings = settings
        self._dtype: torch.dtype = getattr(torch, settings.model.dtype)
        """Of published weights."""
        self._place = place
        self._device = own_device(settings, place)
        self._deepspeed = import_deepspeed(self._device, place)
        self._scorer, self._zero = self._wrapped(trained=True)
        frozen = None
        if settings.loss.kl_coef > 0:
            frozen, self._reference = self._wrapped(trained=False)
        self._loss = BatchLoss(self._scorer, frozen, settings.loss)

    def _wrapped(self, *, trained: bool) -> tuple[Scorer, ZeroModel]:
        """The model under ZeRO, and who scores with it: made before, on the host, where the model is whole."""
        learner = self._settings.learner
        on_host = self._settings.model_copy(update={"learner": learner.model_copy(update={"device": "cpu"})})
        model = load_model(on_host, trained=trained)
        scorer = Scorer(model, on_host)
        zero = ZeroModel(self._deepspeed, model, learner, self._device, trained=trained)
        scorer.device = self._device
        return scorer, zero

    # -- training ---------------------------------------------------------------------------------------------

    def use(self, settings: Settings) -> None:
        """Other settings from the next step on."""
        self._settings = settings
        self._loss.use(settings.loss)

    def old_logprobs(self, microbatches: Sequence[Microbatch]) -> list[Tensor]:
        """Log-probs of the completion tokens, microbatch by microbatch as ``step`` takes them; on every rank of all."""
        arranged = self._scorer.arrange(microbatches)

        def logprobs(batch: Microbatch, _index: int | None, _last: bool) -> Tensor:
            return self._loss.logprobs(batch, self._zero.engine)[None]

        return [found[0] for found in self._on_all_ranks(arranged, logprobs)]

    def step(self, microbatches: Sequence[Microbatch], old: Sequence[Any] | None = None) -> dict[str, float]:
        """One optimizer step on the joint batch; returns its metrics, the same on all ranks.

        Raises SettingsError, on all of them, when it leaves weights that are not finite.
        """
        counts, losses = tokens_by_objective(microbatches), []
        arranged = self._scorer.arrange(microbatches)

        def backward(batch: Microbatch, index: int | None, last: bool) -> Tensor:
            before = None if old is None or index is None else torch.as_tensor(old[index], device=self._device)
            self._zero.accumulate_until(last)
            part = self._loss(batch, counts, before, model=self._zero.engine)
            self._zero.backward(part.loss)
            losses.append(part.loss.detach())
            return torch.stack([getattr(part.columns, name) for name in SENT])

        found = self._on_all_ranks(arranged, backward)
        rate = learning_rate(self.policy_version + 1, self._settings.learner)
        norm, finite = self._zero.update(rate) if arranged else (0.0, True)
        if finite and total(float(not self._zero.finite_in(self._dtype)), self._device):
            raise SettingsError(EXPLODED.format(self.policy_version + 1, self._dtype, rate))
        loss = total(float(sum(losses)), self._device)
        if not finite:  # one such step would poison the weights, and every checkpoint after it
            log.warning("learner.step_skipped", reason="the gradient is not finite", loss=loss)
        self.policy_version += 1
        stats = TokenStats()
        for batch, sent_CN in zip(arranged, found, strict=True):
            stats.add(_columns(batch, sent_CN))
        self.sample_losses = stats.sample_losses(count_samples(microbatches))
        return {
            "loss": loss,
            "grad_norm": norm,
            "lr": rate,
            "skipped": float(not finite),
            **stats.summary(self._settings.loss.clip_low),
        }

    def _on_all_ranks(
        self, arranged: Sequence[Microbatch], work: Callable[[Microbatch, int | None, bool], Tensor]
    ) -> list[Tensor]:
        """``work(batch, its index, is it the last)`` of every microbatch, by the rank that it is dealt to: [C, N] each.

        A rank that has fewer than others fills up with empty ones, whose index is None: ZeRO gathers and reduces in
        every pass.
        """
        if not arranged:
            return []
        hands = deal([len(batch.token_ids_T) for batch in arranged], self._place.world_size)
        mine, rounds = hands[self._place.rank], passes(hands)
        parts = []
        for turn in range(rounds):
            index = mine[turn] if turn < len(mine) else None
            batch = empty_microbatch() if index is None else arranged[index]
            parts.append(work(batch, index, turn == rounds - 1))
        return collect(parts, hands, [len(batch.targets_N) for batch in arranged])

    # -- files ------------------------------------------------------------------------------------------------

    def write_weights(self, folder: Path) -> None:
        """What actors run, in their dtype: tied parameters once, as ``TorchEngine`` does."""
        sizes = {name: numel * self._dtype.itemsize for name, numel in self._zero.sizes().items()}
        self._finish([self._write(folder, MODEL, sizes, self._zero.weights(), self._dtype)])

    def write_checkpoint(self, folder: Path) -> None:
        """Parameters and optimizer state in float32, by the name of the parameter."""
        sizes, zero = {name: 4 * numel for name, numel in self._zero.sizes().items()}, self._zero
        failures = [
            self._write(folder, MODEL, sizes, zero.master_weights(), torch.float32),
            self._write(folder, OPTIMIZER, zero.state_bytes(), zero.optimizer_state(), torch.float32),
        ]
        self._finish(failures)

    def _write(
        self, folder: Path, stem: str, sizes: dict[str, int], tensors: Iterator[tuple[str, Tensor]], dtype: torch.dtype
    ) -> OSError | None:
        """Gather on all ranks, write on rank 0. The others do not know of a full disk: all is gathered nevertheless."""
        writer: ShardWriter | None = None
        failure: OSError | None = None
        if self._place.is_first:
            try:
                writer = ShardWriter(folder, stem, sizes)
            except OSError as error:
                failure = error
        for name, tensor in tensors:
            if writer is None or failure:
                continue
            try:
                writer.add(name, tensor.detach().to("cpu", dtype, copy=True))
            except OSError as error:
                failure = error
        return failure

    def _finish(self, failures: Sequence[OSError | None]) -> None:
        """Nothing is announced before every rank is through with its part."""
        dist.barrier()
        for failure in failures:
            if failure:
                raise failure

    def read_checkpoint(self, folder: Path, policy_version: int) -> None:
        """Rank 0 reads. Raises SettingsError when it is of another model, and OSError when it cannot be read."""
        if self._place.is_first:
            with Shards.of(folder, MODEL) as weights, Shards.of(folder, OPTIMIZER) as state:
                if weights.shapes() != self._zero.shapes():
                    raise SettingsError(
                        f"checkpoint {folder.name} is of another model than model.path={self._settings.model.path!r}; "
                        "name the model the run was started with, or start under a new run.name"
                    )
                self._zero.restore(weights, state)
        else:
            self._zero.restore(None, None)
        self.policy_version = policy_version

    def export(self, folder: Path) -> None:
        """A Hugging Face directory that ``from_pretrained`` loads, as ``TorchEngine`` writes it."""
        state = {name: tensor for name, tensor in self._zero.master_weights() if self._place.is_first}
        if self._place.is_first:
            (folder / EXPORTED_FILE).unlink(missing_ok=True)
            tokenizer: Any = pretrained(AutoTokenizer.from_pretrained, self._settings.model)
            self._zero.save_pretrained(folder, state)
            tokenizer.save_pretrained(folder)
            version = json.dumps({"policy_version": self.policy_version})
            (folder / EXPORTED_FILE).write_text(version + "\n", encoding="utf-8")


def _columns(batch: Microbatch, sent_CN: Tensor) -> TokenColumns:
    """What ranks send, with what is known of the batch."""
    return TokenColumns(
        **dict(zip(SENT, sent_CN, strict=True)),
        behaviour=torch.from_numpy(batch.behaviour_logprobs_T[batch.targets_N]),
        objectives=torch.from_numpy(np.asarray(batch.objectives_S[batch.segment_of_N])),
        staleness=torch.from_numpy(np.asarray(batch.staleness_S[batch.segment_of_N])),
        samples=torch.from_numpy(np.asarray(batch.samples_S[batch.segment_of_N])),
    )


def own_device(settings: Settings, place: Place) -> torch.device:
    """The GPU of this rank, or the CPU. Raises SettingsError when this host has fewer GPUs than ranks."""
    device = device_of(settings)
    if device.type == "cpu":
        return device
    if place.local_rank >= (there := torch.cuda.device_count()):
        raise SettingsError(
            f"rank {place.rank} is number {place.local_rank} on its host, which has {there} GPUs; "
            "every rank needs one of its own: lower learner.processes, or set learner.device='cpu'"
        )
    torch.cuda.set_device(place.local_rank)
    if settings.learner.precision == "bfloat16":  # of the float32 output head, as ``Scorer`` says
        torch.set_float32_matmul_precision("high")
    return torch.device("cuda", place.local_rank)


def import_deepspeed(device: torch.device, place: Place) -> Any:
    """The package, set up for this rank; the default process group is there already."""
    os.environ["DS_ACCELERATOR"] = device.type
    os.environ["LOCAL_RANK"] = str(place.local_rank)
    os.environ.setdefault(
        "TORCHDYNAMO_DISABLE", "1"
    )  # for an optimizer unused here it would load torch's compiler: 5 s
    # deepspeed 0.19 calls functions that torch 2.13 has deprecated
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):
        warnings.filterwarnings("ignore", message=f".*{name}", category=FutureWarning)
    logging.getLogger("DeepSpeed").setLevel(
        logging.ERROR
    )  # what it warns of is in the learner's own log, or on purpose
    import deepspeed

    # compiled with a C++ compiler at first use, for a minute or two, and no faster than gloo (docs/learner.md)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if device.type == "cuda" else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    return deepspeed
