# SPARK for GPUs, with vLLM and DeepSpeed: docker build -f infra/docker/cuda.Dockerfile -t spark:cuda .
# CUDA's libraries come with the wheels of torch, the driver from the host through the container runtime: no CUDA base.
# The base is pinned by tag; how to pin its digest is said in cpu.Dockerfile.
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ARG TORCH_INDEX=""
ARG EXTRAS="datasets deepspeed lora reasoning-gym telemetry tensorboard vllm"
WORKDIR /app
COPY pyproject.toml README.md ./
COPY infra/docker/install.sh infra/docker/
COPY infra/engines/cuda-constraints.txt infra/engines/
# hadolint ignore=SC2086
RUN CONSTRAINTS=infra/engines/cuda-constraints.txt bash infra/docker/install.sh /opt/venv packages ${EXTRAS}
COPY actors actors
COPY cli cli
COPY common common
COPY learner learner
COPY recycler recycler
COPY configs configs
COPY examples examples
RUN bash infra/docker/install.sh /opt/venv project && /opt/venv/bin/python -m compileall -q /app

FROM ${BASE}
# The one compiler in an image that runs: Triton, in vLLM, compiles the launcher of each of its kernels at first use.
# No version: Debian keeps only the newest of a release, so a pinned one cannot be built again next month.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 spark && useradd --uid 10001 --gid spark --no-create-home --home-dir /tmp spark \
    && install -d -o spark -g spark /runs /weights /traces
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
# Compiled kernels and caches go to /tmp, the one folder that can be written where the root is read-only.
# hadolint ignore=DL3064
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_WAIT_POLICY=PASSIVE \
    TOKENIZERS_PARALLELISM=false \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    SPARK_RUN__DIR=/runs \
    SPARK_RUN__LOG_TO=stderr
USER 10001:10001
WORKDIR /runs
ENTRYPOINT ["spark"]
CMD ["doctor"]
