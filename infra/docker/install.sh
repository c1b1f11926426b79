#!/usr/bin/env bash
# Installs SPARK for an image, in two steps, so that a change of the source does not install all packages again:
#   install.sh VENV packages [EXTRA...]   makes the virtual environment, with what pyproject.toml asks for
#   install.sh VENV project               SPARK itself, from the folder this script lies in, where it stays
# PYTHON names the interpreter, CONSTRAINTS the file with the versions, constraints.txt unless given. TORCH_INDEX is the
# address of an index with another build of torch than the default one, which brings 3 GB of CUDA: PyTorch's own index
# of CPU wheels, for an image without a GPU.
# The environment has no pip: the image needs none. tests/unit/infra runs the second step as it is, the first dry.
set -euo pipefail
usage() { echo "usage: install.sh VENV packages [EXTRA...] | install.sh VENV project" >&2 && exit 2; }
[ $# -ge 2 ] || usage
venv=$1 step=$2
shift 2
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
versions=$root/${CONSTRAINTS:-constraints.txt}
[ -x "$venv/bin/python" ] || "$python" -m venv --without-pip "$venv"
pip=("$python" -m pip --python "$venv/bin/python" --disable-pip-version-check --quiet install --no-cache-dir)
if [ -n "${TORCH_INDEX:-}" ]; then pip+=(--extra-index-url "$TORCH_INDEX"); fi
if [ -n "${DRY_RUN:-}" ]; then pip=(printf '%s\n'); fi

# The packages of pyproject.toml, one a line: those of the base install and of the extras.
wanted() {
    "$venv/bin/python" - "$root/pyproject.toml" "$@" <<'PYTHON'
import sys, tomllib

with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
if unknown := sorted(set(sys.argv[2:]) - extras.keys()):
    sys.exit(f"install.sh: no extra {unknown[0]!r} in pyproject.toml; it has {', '.join(extras)}")
print(*project["dependencies"], *(package for name in sys.argv[2:] for package in extras[name]), sep="\n")
PYTHON
}

case $step in
packages)
    packages=$(wanted "$@")
    # DeepSpeed comes as source, and looks while it builds at the torch that it finds: after the others, in their sight.
    mapfile -t before < <(grep -v '^deepspeed' <<<"$packages")
    mapfile -t after < <(grep '^deepspeed' <<<"$packages" || true)
    "${pip[@]}" -c "$versions" "${before[@]}"
    if [ ${#after[@]} -gt 0 ]; then
        "${pip[@]}" -c "$versions" setuptools ninja
        DS_BUILD_OPS=0 "${pip[@]}" -c "$versions" --no-build-isolation "${after[@]}"
    fi
    ;;
project)
    "${pip[@]}" --no-deps -e "$root" # in place: configs/ and examples/ are found beside the code
    ;;
*) usage ;;
esac
