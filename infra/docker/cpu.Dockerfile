# SPARK for machines without a GPU: docker build -f infra/docker/cpu.Dockerfile -t spark:cpu .
# The base is pinned by tag. A digest could not be looked up where this was written: pin it in your copy, with
# `docker buildx imagetools inspect python:3.11.14-slim-bookworm`, as python:3.11.14-slim-bookworm@sha256:...
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Address of PyTorch's index of CPU wheels. Left empty, torch comes with CUDA: it works, and is 3 GB larger.
ARG TORCH_INDEX=""
ARG EXTRAS="datasets lora reasoning-gym telemetry tensorboard"
WORKDIR /app
COPY pyproject.toml constraints.txt README.md ./
COPY infra/docker/install.sh infra/docker/
# hadolint ignore=SC2086
RUN bash infra/docker/install.sh /opt/venv packages ${EXTRAS}
COPY actors actors
COPY cli cli
COPY common common
COPY learner learner
COPY recycler recycler
COPY configs configs
COPY examples examples
RUN bash infra/docker/install.sh /opt/venv project && /opt/venv/bin/python -m compileall -q /app

FROM ${BASE}
# The folders are the mount points of volumes, which take their owner over from here.
RUN groupadd --gid 10001 spark && useradd --uid 10001 --gid spark --no-create-home --home-dir /tmp spark \
    && install -d -o spark -g spark /runs /weights /traces
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
# hadolint ignore=DL3064
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_WAIT_POLICY=PASSIVE \
    TOKENIZERS_PARALLELISM=false \
    SPARK_RUN__DIR=/runs \
    SPARK_RUN__LOG_TO=stderr
USER 10001:10001
WORKDIR /runs
ENTRYPOINT ["spark"]
CMD ["doctor"]
