#!/usr/bin/env bash
# Makes a CUDA 13.0 toolkit out of PyPI wheels, enough to build ditmesh with `--features cuda` on a
# machine without a GPU, a driver or root. Needs Python with venv, a C compiler, and cudarc's
# sources (`cargo fetch`). About 1.5 GB.
#
#   model/cuda/toolchain.sh ~/cuda13          # makes the folder
#   source ~/cuda13/env.sh                    # CUDA_HOME, PATH, LIBRARY_PATH, CUDA_COMPUTE_CAP
#   cargo build --features cuda
#
# CUDA_COMPUTE_CAP (default 80) is the oldest GPU the kernels run on; PTX of 80 runs on everything
# newer. The program itself needs libcuda (the driver) and libcublas, libcurand, libnvrtc, libcudart.
set -euo pipefail

home=$(realpath -m "${1:?usage: toolchain.sh FOLDER}")
mkdir -p "$home"
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet \
    nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 \
    nvidia-cuda-cccl==13.0.85 nvidia-cuda-runtime==13.0.96 nvidia-cublas==13.1.0.3 \
    nvidia-curand==10.4.0.35 nvidia-cuda-nvrtc==13.0.88
wheels=$("$home/venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')/nvidia/cu13

# The folders that build scripts look for; linkers want names without a version.
mkdir -p "$home/bin" "$home/lib64/stubs"
ln -sfn "$wheels/include" "$home/include"
ln -sfn "$wheels/nvvm" "$home/nvvm"
ln -sfn lib64 "$home/lib"
for library in "$wheels"/lib/*.so.*; do
    name=$(basename "$library")
    ln -sf "$library" "$home/lib64/$name"
    ln -sf "$library" "$home/lib64/${name%%.so*}.so"
done
ln -sf "$wheels"/lib/*.a "$home/lib64/"

# candle links kernels for quantised language models, which ditmesh never calls and which take most
# of the compile time: they are built without optimisation.
cat > "$home/bin/nvcc" <<WRAPPER
#!/usr/bin/env bash
case "\$*" in
    *moe*|*mmq*|*mmvq*) exec "$wheels/bin/nvcc" "\$@" -Xcicc -O0 -Xptxas -O0 ;;
    *) exec "$wheels/bin/nvcc" "\$@" ;;
esac
WRAPPER
chmod +x "$home/bin/nvcc"

# The driver's library comes with the driver only; a stub with the same symbols lets the linker
# finish. Every function answers CUDA_ERROR_STUB_LIBRARY.
sources=$(ls -d "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/cudarc-0.19.*/src/driver/sys | tail -n 1)
grep -rhoE '\bfn cu[A-Z][A-Za-z0-9_]*' "$sources" | awk '{print $2}' | sort -u |
    awk '{print "int " $1 "(void) { return 34; }"}' > "$home/stub.c"
cc -shared -fPIC -w -Wl,-soname,libcuda.so.1 -o "$home/lib64/stubs/libcuda.so" "$home/stub.c"

cat > "$home/env.sh" <<ENVIRONMENT
export CUDA_HOME="$home" CUDA_PATH="$home" PATH="$home/bin:\$PATH"
export LIBRARY_PATH="$home/lib64:$home/lib64/stubs\${LIBRARY_PATH:+:\$LIBRARY_PATH}"
export CUDA_COMPUTE_CAP="\${CUDA_COMPUTE_CAP:-80}"
ENVIRONMENT
echo "made $home; source $home/env.sh before cargo build --features cuda"
