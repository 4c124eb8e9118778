#!/usr/bin/env bash
# Makes the environments of the peers: setup.sh DIR [PYTHON], with Python 3.11 or 3.12 and a C compiler.
# Then DIR/torch/bin/python runs the PyTorch libraries and DIR/jax-meta/bin/python runs jax-meta.
# They cannot be an extra of ours: learn2learn must be built by hand, and jax-meta pins packages of its own.
set -euo pipefail
dir=${1:?usage: setup.sh DIR [PYTHON]}
python=${2:-python3}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

"$python" -m venv "$dir/torch"
pip="$dir/torch/bin/pip install -q"
$pip torch==2.13.0 numpy==2.4.6 higher==0.2.1
$pip --no-deps torchopt==0.7.3 betty-ml==0.1.1 graphviz
# torchopt imports it, and graphviz above.
$pip optree
$pip "cython<3" wheel setuptools
# learn2learn ships C files made by an old Cython, which do not compile from Python 3.11 on: made again here.
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
cd "$build"
"$dir/torch/bin/pip" download -q --no-deps --no-binary :all: --no-build-isolation learn2learn==0.2.0
tar xzf learn2learn-0.2.0.tar.gz
cd learn2learn-0.2.0
rm -f learn2learn/data/*.c
"$dir/torch/bin/python" setup.py -q build_ext bdist_wheel
$pip --no-deps dist/*.whl

"$python" -m venv "$dir/jax-meta"
pip="$dir/jax-meta/bin/pip install -q"
$pip jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 optax==0.2.8
$pip --no-deps jax-meta==1.0.3 dm-haiku jmp simple-parsing docstring-parser tqdm tabulate
echo "--peers-python $dir/torch/bin/python --jaxmeta-peer-python $dir/jax-meta/bin/python"
