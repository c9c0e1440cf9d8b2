// Exact attention in tiles with the log-sum-exp of every query (FlashAttention, arXiv 2205.14135).
// Compiled by NVRTC for one head width, WIDTH; PADDED is the next multiple of 16.
//
// q, k, v are f32 [B, n, H, WIDTH] with any strides but a last one of 1; strides count elements.
// out is f32 [B, n, H, WIDTH], lse f32 [B, H, n], key_bias f32 [B, m] or null. A query without a
// key, or whose scores are all -inf, gives 0 and -inf.

typedef unsigned int u32;

struct View {
    const float* data;
    long long batch, token, head;
};

__device__ __forceinline__ const float* token_of(const View& view, int b, int h, int token) {
    return view.data + b * view.batch + (long long)token * view.token + h * view.head;
}

#define QUERIES 64
#define KEYS 64
#define MINUS_INFINITY __int_as_float(0xff800000)

// In f32 throughout: 256 threads, each with 4 queries and 4 keys of the tile of scores.
extern "C" __global__ void __launch_bounds__(256) attention_f32(
    const float* q_data, long long q_batch, long long q_token, long long q_head,
    const float* k_data, long long k_batch, long long k_token, long long k_head,
    const float* v_data, long long v_batch, long long v_token, long long v_head,
    const float* key_bias, float* out, float* lse, int queries, int keys, int heads, float scale) {
    extern __shared__ __align__(16) float shared[];
    float* q_tile = shared;                      // [WIDTH][QUERIES]
    float* k_tile = q_tile + WIDTH * QUERIES;    // [WIDTH][KEYS]
    float* v_tile = k_tile + WIDTH * KEYS;       // [KEYS][PADDED]
    float* weights = v_tile + KEYS * PADDED;     // [QUERIES][KEYS + 1]

    const View q = {q_data, q_batch, q_token, q_head};
    const View k = {k_data, k_batch, k_token, k_head};
    const View v = {v_data, v_batch, v_token, v_head};
    const int b = blockIdx.y / heads, h = blockIdx.y % heads;
    const int first = blockIdx.x * QUERIES;
    const int column = threadIdx.x & 15, group = threadIdx.x >> 4;
    constexpr int PARTS = PADDED / 16;

    for (int i = threadIdx.x; i < QUERIES * WIDTH; i += 256) {
        const int row = i / WIDTH, d = i % WIDTH;
        const bool held = first + row < queries;
        q_tile[d * QUERIES + row] = held ? token_of(q, b, h, first + row)[d] * scale : 0.f;
    }
    float total[4][PARTS], largest[4], sums[4];
    for (int i = 0; i < 4; ++i) {
        largest[i] = MINUS_INFINITY;
        sums[i] = 0.f;
        for (int j = 0; j < PARTS; ++j) total[i][j] = 0.f;
    }

    for (int start = 0; start < keys; start += KEYS) {
        __syncthreads();
        for (int i = threadIdx.x; i < KEYS * WIDTH; i += 256) {
            const int row = i / WIDTH, d = i % WIDTH;
            k_tile[d * KEYS + row] = start + row < keys ? token_of(k, b, h, start + row)[d] : 0.f;
        }
        for (int i = threadIdx.x; i < KEYS * PADDED; i += 256) {
            const int row = i / PADDED, d = i % PADDED;
            const bool held = start + row < keys && d < WIDTH;
            v_tile[i] = held ? token_of(v, b, h, start + row)[d] : 0.f;
        }
        __syncthreads();

        float scores[4][4] = {};
        for (int d = 0; d < WIDTH; ++d) {
            const float4 a = *(const float4*)(q_tile + d * QUERIES + group * 4);
            const float4 c = *(const float4*)(k_tile + d * KEYS + column * 4);
            const float left[4] = {a.x, a.y, a.z, a.w}, right[4] = {c.x, c.y, c.z, c.w};
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) scores[i][j] += left[i] * right[j];
        }
        for (int i = 0; i < 4; ++i) {
            float tile_largest = MINUS_INFINITY;
            for (int j = 0; j < 4; ++j) {
                const int key = start + column * 4 + j;
                if (key >= keys) scores[i][j] = MINUS_INFINITY;
                else if (key_bias) scores[i][j] += key_bias[(size_t)b * keys + key];
                tile_largest = fmaxf(tile_largest, scores[i][j]);
            }
            for (int step = 8; step; step >>= 1)
                tile_largest = fmaxf(tile_largest, __shfl_xor_sync(0xffffffffu, tile_largest, step));
            const float now = fmaxf(largest[i], tile_largest);
            const float reference = now == MINUS_INFINITY ? 0.f : now;
            const float keep = expf(largest[i] - reference);
            float sum = 0.f;
            for (int j = 0; j < 4; ++j) {
                const float weight = expf(scores[i][j] - reference);
                weights[(group * 4 + i) * (KEYS + 1) + column * 4 + j] = weight;
                sum += weight;
            }
            for (int step = 8; step; step >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, step);
            sums[i] = sums[i] * keep + sum;
            largest[i] = now;
            for (int j = 0; j < PARTS; ++j) total[i][j] *= keep;
        }
        __syncwarp();
        for (int key = 0; key < KEYS; ++key) {
            float value[PARTS];
#pragma unroll
            for (int j = 0; j < PARTS; ++j) value[j] = v_tile[key * PADDED + column + 16 * j];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float weight = weights[(group * 4 + i) * (KEYS + 1) + key];
#pragma unroll
                for (int j = 0; j < PARTS; ++j) total[i][j] += weight * value[j];
            }
        }
    }

    for (int i = 0; i < 4; ++i) {
        const int query = first + group * 4 + i;
        if (query >= queries) continue;
        const float inverse = sums[i] == 0.f ? 0.f : 1.f / sums[i];
        float* row = out + (((size_t)b * queries + query) * heads + h) * WIDTH;
        for (int j = 0; j < PARTS; ++j) {
            const int d = column + 16 * j;
            if (d < WIDTH) row[d] = total[i][j] * inverse;
        }
        if (column == 0)
            lse[((size_t)b * heads + h) * queries + query] =
                sums[i] == 0.f ? MINUS_INFINITY : largest[i] + logf(sums[i]);
    }
}

// Two f32 as a pair of bfloat16, the first in the low half.
__device__ __forceinline__ u32 pack(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// c += a b for a 16 x 16 and a 16 x 8 tile of bfloat16, summed in f32.
__device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// For products in bfloat16, keys and values are packed once per call, tile by tile, in the very
// layout the tiles have in shared memory: a tile is then one straight copy.
#define K_STRIDE (PADDED / 2 + 4)  // pairs in a row; the 4 spread rows over the banks
#define V_STRIDE (KEYS / 2 + 4)
#define TILE_PAIRS (KEYS * K_STRIDE + PADDED * V_STRIDE)

// One block of 256 threads for each tile of keys of each head: [KEYS][PADDED] keys as pairs along
// the head, then [PADDED][KEYS] values as pairs along the keys, both 0 where there is nothing.
extern "C" __global__ void __launch_bounds__(256) pack_keys_values(
    const float* k_data, long long k_batch, long long k_token, long long k_head,
    const float* v_data, long long v_batch, long long v_token, long long v_head,
    u32* packed, int keys, int heads) {
    __shared__ float values[KEYS * (WIDTH + 1)];
    const View k = {k_data, k_batch, k_token, k_head};
    const View v = {v_data, v_batch, v_token, v_head};
    const int b = blockIdx.y / heads, h = blockIdx.y % heads, start = blockIdx.x * KEYS;
    u32* k_tile = packed + ((size_t)blockIdx.y * gridDim.x + blockIdx.x) * TILE_PAIRS;
    u32* v_tile = k_tile + KEYS * K_STRIDE;
    for (int i = threadIdx.x; i < KEYS * (PADDED / 2); i += 256) {
        const int key = i / (PADDED / 2), d = i % (PADDED / 2) * 2;
        const float* source = token_of(k, b, h, start + key);
        const bool held = start + key < keys;
        const float low = held && d < WIDTH ? source[d] : 0.f;
        const float high = held && d + 1 < WIDTH ? source[d + 1] : 0.f;
        k_tile[key * K_STRIDE + d / 2] = pack(low, high);
    }
    for (int i = threadIdx.x; i < KEYS * WIDTH; i += 256) {
        const int key = i / WIDTH, d = i % WIDTH;
        values[key * (WIDTH + 1) + d] = start + key < keys ? token_of(v, b, h, start + key)[d] : 0.f;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < PADDED * (KEYS / 2); i += 256) {
        const int d = i / (KEYS / 2), key = i % (KEYS / 2) * 2;
        const float low = d < WIDTH ? values[key * (WIDTH + 1) + d] : 0.f;
        const float high = d < WIDTH ? values[(key + 1) * (WIDTH + 1) + d] : 0.f;
        v_tile[d * V_STRIDE + key / 2] = pack(low, high);
    }
}

// Starts copying a packed tile to shared memory.
__device__ __forceinline__ void fetch(u32* tile, const u32* source) {
    for (int i = threadIdx.x; i < TILE_PAIRS / 4; i += 128) {
        const u32 to = (u32)__cvta_generic_to_shared(tile + i * 4);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(source + i * 4));
    }
    asm volatile("cp.async.commit_group;");
}

// Products in bfloat16 on the tensor cores, sums and softmax in f32: 4 warps of 32 or 16
// queries each; one tile of keys and values is copied while the one before is used.
#if PADDED > 96
#define WARP_TILES 1  // wider heads leave registers for no more
#else
#define WARP_TILES 2
#endif
#define BLOCK_QUERIES (4 * WARP_TILES * 16)
extern "C" __global__ void __launch_bounds__(128) attention_bf16(
    const float* q_data, long long q_batch, long long q_token, long long q_head,
    const u32* packed, const float* key_bias, float* out, float* lse, int queries, int keys,
    int heads, float scale) {
    extern __shared__ __align__(16) u32 tiles[];  // two of TILE_PAIRS
    constexpr int STEPS = PADDED / 16, COLUMNS = PADDED / 8;

    const View q = {q_data, q_batch, q_token, q_head};
    const int b = blockIdx.y / heads, h = blockIdx.y % heads;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int row = lane >> 2, pair = lane & 3;
    const int first = blockIdx.x * BLOCK_QUERIES + warp * WARP_TILES * 16;
    const int count = (keys + KEYS - 1) / KEYS;
    packed += (size_t)blockIdx.y * count * TILE_PAIRS;
    // Scores in powers of two: the exponential is then one instruction.
    const float log2e = 1.4426950408889634f;

    u32 query[WARP_TILES][STEPS][4];
#pragma unroll
    for (int m = 0; m < WARP_TILES; ++m)
#pragma unroll
        for (int step = 0; step < STEPS; ++step)
#pragma unroll
            for (int part = 0; part < 4; ++part) {
                const int token = first + m * 16 + row + (part & 1) * 8;
                const int d = step * 16 + pair * 2 + (part >> 1) * 8;
                const float* source = token_of(q, b, h, token);
                const bool held = token < queries;
                const float low = held && d < WIDTH ? source[d] * scale * log2e : 0.f;
                const float high = held && d + 1 < WIDTH ? source[d + 1] * scale * log2e : 0.f;
                query[m][step][part] = pack(low, high);
            }
    float total[WARP_TILES][COLUMNS][4] = {}, largest[WARP_TILES][2], sums[WARP_TILES][2] = {};
    for (int m = 0; m < WARP_TILES; ++m) largest[m][0] = largest[m][1] = MINUS_INFINITY;

    if (count > 0) fetch(tiles, packed);
    for (int index = 0; index < count; ++index) {
        const int start = index * KEYS;
        if (index + 1 < count) {
            fetch(tiles + (index + 1) % 2 * TILE_PAIRS, packed + (size_t)(index + 1) * TILE_PAIRS);
            asm volatile("cp.async.wait_group 1;");
        } else {
            asm volatile("cp.async.wait_group 0;");
        }
        __syncthreads();
        const u32* k_tile = tiles + index % 2 * TILE_PAIRS;
        const u32* v_tile = k_tile + KEYS * K_STRIDE;

        float scores[WARP_TILES][KEYS / 8][4] = {};
#pragma unroll
        for (int step = 0; step < STEPS; ++step)
#pragma unroll
            for (int tile = 0; tile < KEYS / 8; ++tile) {
                const u32* source = k_tile + (tile * 8 + row) * K_STRIDE + step * 8 + pair;
                const u32 low = source[0], high = source[4];
#pragma unroll
                for (int m = 0; m < WARP_TILES; ++m)
                    multiply(scores[m][tile], query[m][step], low, high);
            }
        const bool plain = !key_bias && start + KEYS <= keys;
#pragma unroll
        for (int m = 0; m < WARP_TILES; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float tile_largest = MINUS_INFINITY;
#pragma unroll
                for (int tile = 0; tile < KEYS / 8; ++tile)
#pragma unroll
                    for (int j = 0; j < 2; ++j) {
                        float& score = scores[m][tile][half * 2 + j];
                        if (!plain) {
                            const int key = start + tile * 8 + pair * 2 + j;
                            if (key >= keys) score = MINUS_INFINITY;
                            else if (key_bias) score += key_bias[(size_t)b * keys + key] * log2e;
                        }
                        tile_largest = fmaxf(tile_largest, score);
                    }
                tile_largest = fmaxf(tile_largest, __shfl_xor_sync(0xffffffffu, tile_largest, 1));
                tile_largest = fmaxf(tile_largest, __shfl_xor_sync(0xffffffffu, tile_largest, 2));
                const float now = fmaxf(largest[m][half], tile_largest);
                const float reference = now == MINUS_INFINITY ? 0.f : now;
                const float keep = exp2f(largest[m][half] - reference);
                float sum = 0.f;
#pragma unroll
                for (int tile = 0; tile < KEYS / 8; ++tile)
#pragma unroll
                    for (int j = 0; j < 2; ++j) {
                        float& score = scores[m][tile][half * 2 + j];
                        score = exp2f(score - reference);
                        sum += score;
                    }
                sum += __shfl_xor_sync(0xffffffffu, sum, 1);
                sum += __shfl_xor_sync(0xffffffffu, sum, 2);
                sums[m][half] = sums[m][half] * keep + sum;
                largest[m][half] = now;
#pragma unroll
                for (int tile = 0; tile < COLUMNS; ++tile) {
                    total[m][tile][half * 2] *= keep;
                    total[m][tile][half * 2 + 1] *= keep;
                }
            }
#pragma unroll
        for (int step = 0; step < KEYS / 16; ++step) {
            u32 weights[WARP_TILES][4];
#pragma unroll
            for (int m = 0; m < WARP_TILES; ++m) {
                const float(&left)[4] = scores[m][step * 2];
                const float(&right)[4] = scores[m][step * 2 + 1];
                weights[m][0] = pack(left[0], left[1]);
                weights[m][1] = pack(left[2], left[3]);
                weights[m][2] = pack(right[0], right[1]);
                weights[m][3] = pack(right[2], right[3]);
            }
#pragma unroll
            for (int tile = 0; tile < COLUMNS; ++tile) {
                const u32* source = v_tile + (tile * 8 + row) * V_STRIDE + step * 8 + pair;
                const u32 low = source[0], high = source[4];
#pragma unroll
                for (int m = 0; m < WARP_TILES; ++m)
                    multiply(total[m][tile], weights[m], low, high);
            }
        }
        __syncthreads();
    }

#pragma unroll
    for (int m = 0; m < WARP_TILES; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int token = first + m * 16 + row + half * 8;
            if (token >= queries) continue;
            const float sum = sums[m][half], inverse = sum == 0.f ? 0.f : 1.f / sum;
            float* target = out + (((size_t)b * queries + token) * heads + h) * WIDTH;
#pragma unroll
            for (int tile = 0; tile < COLUMNS; ++tile)
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    const int d = tile * 8 + pair * 2 + j;
                    if (d < WIDTH) target[d] = total[m][tile][half * 2 + j] * inverse;
                }
            if (pair == 0)
                lse[((size_t)b * heads + h) * queries + token] =
                    sum == 0.f ? MINUS_INFINITY : (largest[m][half] + log2f(sum)) / log2e;
        }
}
