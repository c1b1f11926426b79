"""A Hugging Face model under DeepSpeed's ZeRO: how it is wrapped, stepped, gathered and filled.

``deepspeed`` is handed in: ``learner.deepspeed_engine`` imports it. Every method is collective.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.settings import Learner
from learner.model import checkpoint_activations, finite_in

MOMENTS: Final = ("exp_avg", "exp_avg_sq")
"""AdamW's state per parameter, beside ``step``."""
BUCKET_ELEMENTS: Final = 50_000_000
"""Elements gathered or reduced at once. DeepSpeed keeps a buffer of this size, whatever the model's."""
PERSISTENT_ELEMENTS: Final = 100_000
"""Under ZeRO 3 smaller parameters, such as norms, stay whole on every rank: gathering them would cost more."""


class Tensors(Protocol):
    """Tensors by name (``learner.shards.Shards``)."""

    def __getitem__(self, name: str, /) -> Tensor: ...
    def __contains__(self, name: str, /) -> bool: ...


class ZeroModel:
    """``engine`` is what to call for a pass that is trained on, or for one of a frozen model."""

    def __init__(self, deepspeed: Any, module: Any, learner: Learner, device: torch.device, *, trained: bool) -> None:
        """``module``: the whole model in float32 on the host, the same on every rank."""
        self.device = device
        self.module = module
        self._deepspeed = deepspeed
        self._learner = learner
        self._half = learner.precision == "bfloat16"
        self._shapes = {name: tuple(parameter.shape) for name, parameter in self.module.named_parameters()}
        self.engine: Any = self._wrap_trained() if trained else self._wrap_frozen()

    @property
    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        named: Iterator[tuple[str, nn.Parameter]] = self.module.named_parameters()
        return named

    # -- set-up -----------------------------------------------------------------------------------------------

    def _wrap_trained(self) -> Any:
        originals = {name: parameter.data for name, parameter in self._named} if self._half else {}
        self._shard()
        optimizer = torch.optim.AdamW(
            self.module.parameters(),
            lr=self._learner.lr,
            betas=self._learner.adam_betas,
            weight_decay=self._learner.weight_decay,
            fused=True,
        )
        engine, *_ = self._deepspeed.initialize(model=self.module, optimizer=optimizer, config=self._config())
        for name, parameter in self._named if self._half else ():  # else what bfloat16 has left of them
            self._deepspeed.utils.safe_set_full_fp32_param(parameter, originals.pop(name).to(self.device))
        if self._learner.gradient_checkpointing:
            checkpoint_activations(self.module)
        return engine

    def _wrap_frozen(self) -> Any:
        """Whole on every rank under ZeRO 2, as the trained one is; shared out under ZeRO 3."""
        self._shard()
        if self._learner.zero_stage == 2:
            dtype = torch.bfloat16 if self._half else torch.float32
            for parameter in self.module.parameters():
                parameter.data = parameter.data.to(dtype)
            return self.module.to(self.device)
        engine, *_ = self._deepspeed.initialize(model=self.module, config=self._config())
        return engine

    def _shard(self) -> None:
        """Under ZeRO 3: keep this rank's part of every parameter, before the whole model reaches a GPU."""
        if self._learner.zero_stage == 3:
            for parameter in self.module.parameters() if self._half else ():
                parameter.data = parameter.data.to(torch.bfloat16)
            self._deepspeed.zero.Init(
                module=self.module, config_dict_or_path=self._config(), mem_efficient_linear=False
            )
            self.module.to(self.device)  # the buffers

    def _config(self) -> dict[str, Any]:
        bucket = min(BUCKET_ELEMENTS, sum(self.sizes().values()))
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,  # as many as a batch has; the engine says which pass is the last
            "gradient_clipping": self._learner.grad_clip,
            "bf16": {"enabled": self._half},
            "data_types": {"grad_accum_dtype": "fp32"},
            "zero_optimization": {
                "stage": self._learner.zero_stage,
                "overlap_comm": self.device.type == "cuda",
                "reduce_bucket_size": bucket,
                "allgather_bucket_size": bucket,
                "stage3_prefetch_bucket_size": bucket,
                "stage3_param_persistence_threshold": PERSISTENT_ELEMENTS,
            },
        }

    # -- a step -----------------------------------------------------------------------------------------------

    def accumulate_until(self, last: bool) -> None:
        """Say before every pass whether it is the last of its batch."""
        self.engine.set_gradient_accumulation_boundary(last)

    def backward(self, loss: Tensor) -> None:
        """``loss`` is summed over passes and ranks; DeepSpeed takes the mean over the ranks."""
        self.engine.backward(loss * dist.get_world_size())

    def update(self, rate: float) -> tuple[float, bool]:
        """One optimizer step with the accumulated gradient; its norm before clipping, and whether that was finite.

        A gradient that is not is dropped by DeepSpeed, on all ranks alike.
        """
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        self.engine.step()
        return float(self.engine.get_global_grad_norm()), not self.engine.optimizer.overflow

    def finite_in(self, dtype: torch.dtype) -> bool:
        """Whether this rank's part of the master weights can be told in ``dtype``."""
        return finite_in(self._flat_parts(), dtype)

    # -- what it holds ----------------------------------------------------------------------------------------

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all parameters, tied ones once."""
        return dict(self._shapes)

    def sizes(self) -> dict[str, int]:
        """Elements of all parameters."""
        return {name: torch.Size(shape).numel() for name, shape in self._shapes.items()}

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Whole parameters, as the model computes with them; each is valid until the next."""
        for bucket in self._buckets():
            with self._gathered(bucket.values()):
                for name, parameter in bucket.items():
                    yield name, parameter.detach()

    def master_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Whole parameters in float32."""
        for name, parameter in self._named:
            yield name, self._deepspeed.utils.safe_get_full_fp32_param(parameter)

    def state_bytes(self) -> dict[str, int]:
        """Name -> bytes of what ``optimizer_state`` yields, in its order; nothing before the first step."""
        if not self._optimizer.state:
            return {}
        sizes = self.sizes()
        return {
            f"{name}/{key}": 4 if key == "step" else 4 * sizes[name] for name in sizes for key in (*MOMENTS, "step")
        }

    def optimizer_state(self) -> Iterator[tuple[str, Tensor]]:
        """``NAME/KEY`` and whole tensor, in the names of torch's AdamW."""
        if not self._optimizer.state:
            return
        for name, parameter in self._named:
            for key in MOMENTS:
                yield f"{name}/{key}", self._deepspeed.utils.safe_get_full_optimizer_state(parameter, key)
            yield f"{name}/step", next(iter(self._optimizer.state.values()))["step"]

    def restore(self, weights: Tensors | None, state: Tensors | None) -> None:
        """Take over what rank 0 has, in the forms that ``master_weights`` and ``optimizer_state`` yield."""
        self._make_state()
        steps = torch.zeros((), device=self.device)
        for name, parameter in self._named:
            self._set_weight(parameter, self._from_first(weights, name, self._shapes[name]))
            for key in MOMENTS:
                moment = self._from_first(state, f"{name}/{key}", self._shapes[name])
                self._deepspeed.utils.safe_set_full_optimizer_state(parameter, moment, key)
            steps = torch.maximum(steps, self._from_first(state, f"{name}/step", ()))
        for held in self._optimizer.state.values():
            held["step"].copy_(steps)

    def save_pretrained(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """On rank 0 alone: a Hugging Face directory with these whole parameters in float32."""
        buffers = {name: t for name, t in self.module.state_dict().items() if name in dict(self.module.named_buffers())}
        self.module.save_pretrained(folder, state_dict={**state, **buffers})
        config = copy.deepcopy(self.module.config)
        config.dtype = torch.float32
        config.save_pretrained(folder)

    # -- DeepSpeed's inside, as of the version that pyproject.toml pins ------------------------------------------

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        """torch's AdamW; its parameters are this rank's flat float32 parts."""
        optimizer: torch.optim.Optimizer = self.engine.optimizer.optimizer
        return optimizer

    def _flat_parts(self) -> list[Tensor]:
        zero = self.engine.optimizer
        parts: list[Tensor] = (
            zero.fp32_partitioned_groups_flat if self._learner.zero_stage == 3 else zero.single_partition_of_fp32_groups
        )
        return parts

    def _make_state(self) -> None:
        """The state that AdamW makes in its first step, which a restored one may not wait for."""
        if self._optimizer.state:
            return
        for part in self._flat_parts():
            step = torch.zeros((), device=part.device)
            self._optimizer.state[part] = {"step": step, **{key: torch.zeros_like(part) for key in MOMENTS}}
        if self._learner.zero_stage == 2:
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    # -- between ranks ----------------------------------------------------------------------------------------

    def _set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """The master weight and, rounded, what the model computes with. ``value``: the same on all ranks."""
        self._deepspeed.utils.safe_set_full_fp32_param(parameter, value)
        with torch.no_grad(), self._gathered([parameter], modifier_rank=0):
            parameter.data.copy_(value)

    def _from_first(self, source: Tensors | None, name: str, shape: tuple[int, ...]) -> Tensor:
        """Rank 0's tensor, on all; zeros where it has none."""
        tensor = torch.zeros(shape, device=self.device)
        if source is not None and name in source:
            tensor.copy_(source[name])
        dist.broadcast(tensor, src=0)
        return tensor

    def _gathered(self, parameters: Any, modifier_rank: int | None = None) -> AbstractContextManager[Any]:
        """Under ZeRO 3 the whole of these parameters within the block; otherwise they are whole anyway."""
        context: AbstractContextManager[Any] = self._deepspeed.zero.GatheredParameters(
            list(parameters), modifier_rank=modifier_rank
        )
        return context

    def _buckets(self) -> Iterator[dict[str, nn.Parameter]]:
        bucket: dict[str, nn.Parameter] = {}
        held, sizes = 0, self.sizes()
        for name, parameter in self._named:
            if bucket and held + sizes[name] > BUCKET_ELEMENTS:
                yield bucket
                bucket, held = {}, 0
            bucket[name] = parameter
            held += sizes[name]
        yield bucket
