// Row kernels: one block for each row of a matrix. Compiled by NVRTC, hence without headers.

typedef unsigned short u16;
typedef unsigned int u32;

// bfloat16 as raw bits; stores round to nearest even.
__device__ __forceinline__ float load(const float* p) { return *p; }
__device__ __forceinline__ float load(const u16* p) { return __uint_as_float((u32)*p << 16); }

// Sum over a block of 256 threads; every thread gets it. Fixed order, so the same bits every time.
__device__ __forceinline__ float block_sum(float value) {
    __shared__ float sums[8];
    for (int step = 16; step; step >>= 1) value += __shfl_xor_sync(0xffffffffu, value, step);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) sums[threadIdx.x >> 5] = value;
    __syncthreads();
    float total = 0.f;
    for (int i = 0; i < 8; ++i) total += sums[i];
    return total;
}

// y = norm(x) * (1 + scale) + shift over rows of `width`, statistics in two passes.
extern "C" __global__ void norm_modulate(
    const float* x, const float* shift, const float* scale, float* y, int width, float eps) {
    const float* row = x + (size_t)blockIdx.x * width;
    float* out = y + (size_t)blockIdx.x * width;
    float sum = 0.f;
    for (int i = threadIdx.x; i < width; i += 256) sum += row[i];
    const float mean = block_sum(sum) / width;
    float squares = 0.f;
    for (int i = threadIdx.x; i < width; i += 256) {
        const float centred = row[i] - mean;
        squares += centred * centred;
    }
    const float inverse = rsqrtf(block_sum(squares) / width + eps);
    for (int i = threadIdx.x; i < width; i += 256)
        out[i] = (row[i] - mean) * inverse * (1.f + scale[i]) + shift[i];
}

// What follows a product: y = residual + gate * act(product + bias), each part if it is there.
// Activations: 0 none, 1 gelu (tanh form), 2 silu.
template <typename T>
__device__ __forceinline__ void epilogue(
    const T* product, const float* bias, const float* gate, const float* residual, float* y,
    int width, size_t count, int activation) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const int column = (int)(i % width);
    float value = load(product + i);
    if (bias) value += bias[column];
    if (activation == 1) {
        const float inner = 0.7978845608028654f * (value + 0.044715f * value * value * value);
        value = 0.5f * value * (1.f + tanhf(inner));
    } else if (activation == 2) {
        value = value / (1.f + expf(-value));
    }
    if (gate) value *= gate[column];
    if (residual) value += residual[i];
    y[i] = value;
}

extern "C" __global__ void epilogue_f32(
    const float* product, const float* bias, const float* gate, const float* residual, float* y,
    int width, size_t count, int activation) {
    epilogue(product, bias, gate, residual, y, width, count, activation);
}

extern "C" __global__ void epilogue_bf16(
    const u16* product, const float* bias, const float* gate, const float* residual, float* y,
    int width, size_t count, int activation) {
    epilogue(product, bias, gate, residual, y, width, count, activation);
}
