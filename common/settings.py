"""Every setting of a run, with its default, unit and meaning. docs/configuration.md is generated from here.

Where they come from, and which source wins: ``common/settings_sources.py``.
"""

from __future__ import annotations

from hashlib import blake2s
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

CONFIGS: Final = Path(__file__).resolve().parent.parent / "configs"
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Run(Section):
    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Name of the run: its directory, and its key prefix in Redis."""
    dir: Path = Path("runs")
    """Directory that holds run directories; relative to the working directory."""
    seed: int = 0
    """Seed of prompt order, sampling and judge-task choices."""
    no_progress_s: float = Field(default=120.0, gt=0)
    """A process that gets nothing done for this long is reported: where it is, what it waits for, who ends the wait.
    Longer than an optimizer step and a group take."""
    log_to: Literal["file", "stderr"] = "file"
    """Where a process's events go: `logs/MEMBER.log` of the run directory, or its standard error (containers)."""
    python_path: tuple[Path, ...] = ()
    """Folders searched for `python:module:function`. The run file's own folder is added."""

    @property
    def directory(self) -> Path:
        return self.dir / self.name


class Redis(Section):
    url: SecretStr = SecretStr("")
    """`redis://`, `rediss://` or `unix://` URL. Empty: `spark up` starts an embedded server."""
    url_file: Path | None = None
    """File that holds the URL with its password, as a container's secret does. Read when `redis.url` is empty."""
    tls_ca_file: Path | None = None
    """Certificates (PEM) of the authorities that may have signed the server's, for `rediss://`. None: the system's."""
    tls_cert_file: Path | None = None
    """Certificate (PEM) that this client shows, for a server that asks for one."""
    tls_key_file: Path | None = None
    """Private key (PEM) of `redis.tls_cert_file`, when it is not in the same file."""
    lease_s: float = Field(default=60.0, gt=0)
    """An entry idle longer than this is claimed by another actor; a living owner renews at a quarter of it."""
    max_deliveries: int = Field(default=5, ge=1)
    """Deliveries after which an entry goes to the dead letters."""
    give_up_s: float = Field(default=60.0, gt=0)
    """A process that cannot reach the server for this long ends with exit code 3."""
    rebuild: bool = False
    """On a server that lost the run: go on from the newest checkpoint, issuing again what it has not trained."""
    memory_share: Share = 0.65
    """Issuing stops above this share of the server's maxmemory."""


class Model(Section):
    path: str = ""
    """Hugging Face directory or hub id of the model to train."""
    revision: str | None = None
    """Commit of a hub model."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the actors' model and of published weights. The learner's master weights are float32."""
    attn_implementation: str = "sdpa"
    """Attention of transformers, in actors and where the learner cannot pack: `sdpa`, `eager`, `flash_attention_2`."""
    trust_remote_code: bool = False
    """Run Python code shipped with the model. Only for models you trust."""


class Lora(Section):
    """Train a low-rank adapter (arXiv 2106.09685) and publish only it. Needs the extra `lora`."""

    rank: int = Field(default=0, ge=0)
    """Rank of the adapter matrices. 0: all weights are trained."""
    alpha: float = Field(default=32.0, gt=0)
    """The adapter's product is scaled by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that get an adapter, such as `q_proj`. Empty: all but the output head."""


class Prompts(Section):
    source: str = ""
    """`FILE.jsonl`, `dataset:NAME_OR_DIR[:SPLIT]`, `reasoning-gym:TASK`, or `python:MODULE:FUNCTION`."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Parameters of a reasoning-gym task or keyword arguments of a Python function."""
    columns: dict[Literal["prompt", "messages", "answer", "verifier", "verifier_args"], str] = Field(
        default_factory=dict
    )
    """Columns of a `dataset:` under other names than ours: `{prompt = "question", answer = "solution"}`."""
    verifier: str = "math"
    """Verifier for prompts that name none: `exact`, `choice`, `math`, `reasoning-gym`, `python:MODULE:FUNCTION`."""
    shuffle: bool = True
    """Shuffle every epoch, from the run's seed."""
    epochs: int | None = Field(default=None, ge=1)
    """Passes over the source after which issuing stops. None: until `learner.max_steps`."""


class Templates(Section):
    path: str = "default"
    """Template set: `default`, or a TOML file."""


class Sampling(Section):
    group_size: int = Field(default=8, ge=2)
    """Completions per task (n). A lone rollout always gets advantage 0."""
    temperature: float = Field(default=1.0, gt=0)
    max_new_tokens: int = Field(default=1024, ge=1)
    """Token limit of a solution or a reflection."""
    judge_max_new_tokens: int | None = Field(default=None, ge=1)
    """Token limit of a pointwise or pairwise verdict. None: as for solutions."""
    max_prompt_tokens: int = Field(default=8192, ge=1)
    """Longer prompts go to the dead letters."""


class Staleness(Section):
    max_staleness: int = Field(default=4, ge=0)
    """eta: a group enters a batch only if no token of it is older than this many optimizer steps."""
    max_content_staleness: int | None = Field(default=None, ge=0)
    """The same for the answer a judge task shows; importance ratios cannot repair it. None: 4 * max(eta, 1)."""

    @property
    def content_bound(self) -> int:
        return 4 * max(self.max_staleness, 1) if self.max_content_staleness is None else self.max_content_staleness


class Actor(Section):
    engine: Literal["transformers", "vllm"] = "transformers"
    """`transformers` runs everywhere; `vllm` batches continuously (GPUs: extra `vllm`; CPUs: `make setup-engines`)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the transformers engine runs. `auto`: a GPU if there is one."""
    count: int = Field(default=2, ge=1)
    """Actors that `spark up` starts."""
    groups_in_flight: int = Field(default=16, ge=1)
    """Groups one actor generates at once."""
    torch_threads: int = Field(default=1, ge=1)
    """CPU threads of one actor. More than the free cores is far slower than one."""
    kv_on_update: Literal["recompute", "keep"] = "recompute"
    """When weights change in mid-completion: recompute the KV cache (exact), or keep it (cheaper, staler)."""


class Vllm(Section):
    """Of `actor.engine = "vllm"`."""

    max_model_len: int | None = Field(default=None, ge=1)
    """Longest prompt and completion together, in tokens. None: the model's own limit."""
    max_num_seqs: int = Field(default=256, ge=1)
    """Completions decoded at once."""
    block_size: int | None = Field(default=None, ge=1)
    """Tokens per block of the KV cache. None: 32 on a CPU, vLLM's choice on a GPU."""
    kv_cache_gib: float = Field(default=1.0, gt=0)
    """KV cache on a CPU, GiB."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of a GPU's memory that vLLM may use."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs that one actor's model is split over."""
    enforce_eager: bool = False
    """No CUDA graphs: starts faster, generates slower. Always so on a CPU."""


class Verifier(Section):
    timeout_s: float = Field(default=5.0, gt=0)
    """A verification that takes longer is killed; its rollout is excluded, not scored 0."""
    memory_mb: int = Field(default=2048, ge=64)
    """Address-space limit of a verifier process beyond what it has at start."""
    workers: int = Field(default=1, ge=1)
    """Verifier processes per actor."""


class Mix(Section):
    """Shares of the judge objectives among judge tasks; normalised by their sum."""

    pointwise: float = Field(default=0.25, ge=0)
    pairwise: float = Field(default=0.25, ge=0)
    reflect: float = Field(default=0.5, ge=0)


class Recycler(Section):
    recipe: Literal["balanced", "natural", "original"] = "balanced"
    """`balanced`: classes 50/50; `natural`: the rollouts' own rate; `original`: as SPARK's released code does."""
    mix: Mix = Mix()
    correct_share: Share = 0.5
    """Share of right answers among reflection sources."""
    told_wrong_share: Share = 0.0
    """Cap on reflection tasks whose template says that the answer is wrong (wrong sources only)."""
    max_tasks_per_group: int = Field(default=4, ge=1)
    """Judge tasks made from one policy group at most (`balanced` and `natural`)."""
    reservoir_groups: int = Field(default=256, ge=1)
    """Scored groups kept (un-acked) as sources; beyond it the oldest of the fullest kind is dropped."""


class Loss(Section):
    kind: Literal["ppo", "cispo", "tis"] = "ppo"
    """Correction for staleness: clipped ratio to behaviour log-probs, CISPO, or truncated importance sampling."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    clip_high: float = Field(default=0.2, gt=0)
    cap: float = Field(default=2.0, gt=0)
    """Upper bound of the importance weight in `cispo` and `tis`."""
    old_logprobs: Literal["behaviour", "recomputed"] = "behaviour"
    """What `ppo` takes the ratio to: the engine's log-probs, or a forward pass at the start of the batch."""
    normalise: Literal["objective", "token"] = "objective"
    """`objective`: each objective by its own token count, then weighted. `token`: one mean over all tokens."""
    solve_weight: float = Field(default=1.0, ge=0)
    pointwise_weight: float = Field(default=0.25, ge=0)
    pairwise_weight: float = Field(default=0.25, ge=0)
    reflect_weight: float = Field(default=0.5, ge=0)
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the k3 estimate of KL(policy || frozen base model)."""


class Learner(Section):
    max_steps: int = Field(default=1000, ge=1)
    """Optimizer steps of the run."""
    groups_per_step: int = Field(default=64, ge=1)
    """Policy groups (prompts) per batch."""
    judge_share: float = Field(default=0.5, ge=0, lt=1)
    """Judge groups as a share of a joint batch, at most. 0 switches judging off (GRPO)."""
    mixing: Literal["joint", "alternate"] = "joint"
    """One batch of both streams, or a policy batch and then a judge batch (as the released code)."""
    updates_per_batch: int = Field(default=1, ge=1)
    """Optimizer steps per batch; each takes an equal part of its groups."""
    judge_wait_s: float = Field(default=0.0, ge=0)
    """How long a full policy batch waits for judge groups that are still on their way."""
    straggler_wait_s: float = Field(default=10.0, ge=0)
    """How long a full batch waits for older groups that would be too stale at the next one."""
    advantage: Literal["group_norm", "group_norm_unbiased", "mean"] = "group_norm"
    """(r - mean) / (std + eps) with the population or the unbiased std, or r - mean (Dr.GRPO)."""
    advantage_eps: float = Field(default=1e-4, gt=0)
    filter_zero_variance: bool = True
    """Leave groups without a contrast out of loss and denominator; others are issued in their place."""
    refill: float = Field(default=4.0, ge=1)
    """Groups looked at per batch at most, over `groups_per_step`; after that a smaller batch is taken."""
    lr: float = Field(default=1e-6, gt=0)
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    lr_min_ratio: Share = 0.1
    """Learning rate at max_steps over its peak (`linear`, `cosine`)."""
    warmup_steps: int = Field(default=5, ge=0)
    """Optimizer steps over which the rate rises from 0."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    """The same as a share of `max_steps`, rounded up; it replaces `warmup_steps`."""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=0.0, ge=0)
    grad_clip: float = Field(default=1.0, gt=0)
    tokens_per_microbatch: int = Field(default=16384, ge=1)
    """Tokens of one forward pass, of one process; gradients accumulate over the batch."""
    engine: Literal["torch", "deepspeed"] = "torch"
    """`torch`: one process. `deepspeed`: ZeRO over `learner.processes` of them (extra `deepspeed`)."""
    processes: int = Field(default=1, ge=1)
    """Processes that train together, all started on this host; where a launcher sets RANK and WORLD_SIZE, theirs."""
    zero_stage: Literal[2, 3] = 2
    """What DeepSpeed shares out: 2 optimizer state and gradients, 3 parameters too."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the learner trains. `auto`: a GPU if there is one."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the forward and backward pass. Master weights and optimizer state are float32 in both."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    packing: bool = True
    """Run samples one after another without padding, where the model's attention allows it (checked at start)."""
    torch_threads: int = Field(default=1, ge=1)
    checkpoint_every: int = Field(default=20, ge=1)
    """Optimizer steps between checkpoints. Entries are acknowledged only by a durable checkpoint."""
    checkpoints_kept: int = Field(default=2, ge=1)

    @property
    def judge_groups_per_step(self) -> int:
        """Judge groups beside ``groups_per_step`` policy groups in a batch, at most."""
        if self.mixing == "alternate":
            return self.groups_per_step if self.judge_share > 0 else 0
        return round(self.groups_per_step * self.judge_share / (1.0 - self.judge_share))


class Weights(Section):
    dir: Path | None = None
    """Directory of published weights, on a disk that actors share. None: `weights/` in the run directory."""
    shared_memory: bool = False
    """Publish through /dev/shm instead (one host)."""
    url: str = ""
    """Publish below URL/RUN instead, through fsspec: `s3://BUCKET/PREFIX`, `file:///mnt/x`. No credentials in it."""
    anchor_every: int = Field(default=1, ge=1, le=256)
    """Every so many versions one is published whole, those between as the lossless difference to the one before."""
    cache_dir: Path | None = None
    """Where an actor keeps its own copy of weights that come by URL or as differences. None: /dev/shm, if there is."""
    keep: int = Field(default=2, ge=1)
    """Newest versions kept even when no live actor uses them."""


class Archive(Section):
    """What the run keeps of the groups that the learner consumed, in `groups/` of the run directory."""

    max_mb: int = Field(default=512, ge=0)
    """Size of the archive, MiB; beyond it the oldest groups are forgotten. 0: nothing is kept."""


class Telemetry(Section):
    """Metrics and traces through OpenTelemetry; off unless one of the first two is set. Needs the extra `telemetry`."""

    endpoint: str = ""
    """OTLP collector (http/protobuf), such as `http://collector:4318`; `/v1/metrics` and `/v1/traces` are added.
    No credentials in it: they go into the environment, as OTEL_EXPORTER_OTLP_HEADERS."""
    prometheus_port: int = Field(default=0, ge=0, le=60000)
    """Port for Prometheus. 0: none. Of the learner; the recycler has the next one, actor-0 the one after, and so on."""
    prometheus_host: str = "127.0.0.1"
    """Address that those ports listen on. Whoever reaches them can read all metrics."""
    interval_s: float = Field(default=10.0, gt=0)
    """Seconds between exports to the collector."""
    sample_share: Share = 1.0
    """Share of the tasks that are traced. Steps are always."""

    @property
    def on(self) -> bool:
        return bool(self.endpoint or self.prometheus_port)


class Eval(Section):
    prompts: str = ""
    """Held-out prompts of the run's before/after table; same forms as `prompts.source`. Empty: no table."""
    args: dict[str, Any] = Field(default_factory=dict)
    draws: int = Field(default=2048, ge=1)
    """Prompts drawn per figure."""
    rounds: int = Field(default=2, ge=0)
    """Judge-and-reflect rounds of test-time scaling."""
    votes: int = Field(default=4, ge=1)
    """Samples of the majority vote printed beside it."""
    seed: int | None = None
    """Seed of the evaluation's prompts and sampling. None: `run.seed` + 1, so that runs do not share noise."""


class Metrics(Section):
    """What the learner records of every step beside `metrics.jsonl`, and when the judge's figures raise an alarm."""

    sinks: tuple[Annotated[str, Field(pattern=r"^(tensorboard|wandb|python:[\w.]+:\w+)$")], ...] = ()
    """Where metrics go too: `tensorboard`, `wandb` (extras of these names), `python:MODULE:CLASS` (docs/metrics.md)."""
    wandb_project: str = "spark"
    """Project of the Weights & Biases run. Its key and mode come from the environment: WANDB_API_KEY, WANDB_MODE."""
    judge_window: int = Field(default=256, ge=16)
    """Newest pointwise tasks, and newest pairwise tasks, that the figures of the judge are taken over."""
    alarm_window: int = Field(default=32, ge=1)
    """Newest pointwise tasks of right, and of wrong answers, that an alarm looks at; none before so many came."""
    min_tpr: Share = 0.15
    """Alarm when the judge accepts a smaller share of right answers. 0 switches it off."""
    min_tnr: Share = 0.15
    """Alarm when the judge rejects a smaller share of wrong answers. 0 switches it off."""


class Settings(BaseSettings):
    """All settings of one run."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        env_prefix="SPARK_",
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
    )
    preset: Literal["spark", "spark_original", "grpo"] = "spark"
    """Named values from configs/, just below the source that names them: a run file overrides its own preset."""
    run: Run = Run()
    redis: Redis = Redis()
    model: Model = Model()
    lora: Lora = Lora()
    prompts: Prompts = Prompts()
    templates: Templates = Templates()
    sampling: Sampling = Sampling()
    staleness: Staleness = Staleness()
    actor: Actor = Actor()
    vllm: Vllm = Vllm()
    verifier: Verifier = Verifier()
    recycler: Recycler = Recycler()
    loss: Loss = Loss()
    learner: Learner = Learner()
    weights: Weights = Weights()
    archive: Archive = Archive()
    telemetry: Telemetry = Telemetry()
    eval: Eval = Eval()
    metrics: Metrics = Metrics()

    @model_validator(mode="after")
    def _checked(self) -> Settings:
        self.check()
        return self

    def check(self) -> None:
        """What one section alone cannot know. Raises ValueError."""
        _check_weights_url(self.weights.url)
        _check_endpoint(self.telemetry.endpoint)
        learner, staleness = self.learner, self.staleness.max_staleness
        if learner.groups_per_step % learner.updates_per_batch:
            raise ValueError(
                f"learner.groups_per_step={learner.groups_per_step} is no multiple of "
                f"learner.updates_per_batch={learner.updates_per_batch}; each update takes an equal part"
            )
        if learner.max_steps % learner.updates_per_batch:
            raise ValueError(
                f"learner.max_steps={learner.max_steps} is no multiple of "
                f"learner.updates_per_batch={learner.updates_per_batch}; a run ends after a whole batch"
            )
        if learner.mixing == "alternate" and staleness > 0:
            raise ValueError(
                f"learner.mixing='alternate' is synchronous, but staleness.max_staleness={staleness}; set it to 0: "
                "what is sampled ahead would be too stale after the judge's updates"
            )
        if 0 < staleness < learner.updates_per_batch:
            raise ValueError(
                f"staleness.max_staleness={staleness} is below learner.updates_per_batch={learner.updates_per_batch}, "
                "so it allows no overlap; set 0 (synchronous) or at least that"
            )

    @property
    def eval_seed(self) -> int:
        return self.run.seed + 1 if self.eval.seed is None else self.eval.seed

    @property
    def weights_dir(self) -> Path:
        if self.weights.shared_memory:
            place = str(self.run.directory.absolute())  # two runs of one name in two folders must not meet
            return Path("/dev/shm") / f"spark-{self.run.name}-{blake2s(place.encode(), digest_size=6).hexdigest()}"
        return self.weights.dir or self.run.directory / "weights"


def _check_weights_url(url: str) -> None:
    """The message does not repeat the URL: it may hold a password."""
    if not url:
        return
    scheme, separator, place = url.partition("://")
    if not separator or "::" in url:
        raise ValueError("weights.url is no URL such as s3://BUCKET/PREFIX or file:///mnt/spark")
    user = place.partition("/")[0].rpartition("@")[0]
    if ":" in user or "?" in place or "#" in place:
        raise ValueError(
            f"weights.url holds credentials or a query; it is announced and logged, so leave them out and give them to "
            f"{scheme} through its environment variables or configuration file"
        )


def _check_endpoint(endpoint: str) -> None:
    """The message does not repeat the URL: it may hold a password."""
    scheme, separator, place = endpoint.partition("://")
    if endpoint and (scheme not in ("http", "https") or not separator or not place):
        raise ValueError("telemetry.endpoint is no URL such as http://collector:4318")
    if any(sign in place for sign in "@?#"):
        raise ValueError(
            "telemetry.endpoint holds credentials or a query; it is logged, so leave them out and give them to the "
            "exporter through OTEL_EXPORTER_OTLP_HEADERS"
        )
