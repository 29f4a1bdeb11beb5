// Int8 linear layers and a whole BERT-like encoder on a CPU. Python's side: engine.py and int8_encoder.py.
//
// A linear layer:   y = (sum_k q_x q_w as int32) * (s_x * s_w) + bias, then GELU, then the residual.
// An encoder layer is two steps, and between them threads must wait for each other:
//   attend       one text, one head: softmax(q k^T / sqrt(d_k)) v, both products in int8
//   after_attend some rows: output projection, LayerNorm, feed-forward network, LayerNorm, and the next layer's q, k, v.
//                What one product leaves is normalized and quantized for the next while it is still in the cache.
// Padding is never computed: the real tokens of all texts stand one after the other ("packed").
#include "engine_dot.h"
#include "engine_vector.h"

#include <algorithm>
#include <vector>

static inline int up_to(int multiple, int n) { return (n + multiple - 1) / multiple * multiple; }

// Memory that a thread keeps from call to call: fresh pages from the system would cost more than the arithmetic.
template <typename T>
struct Buffer {
    std::vector<T> memory;
    T* get(size_t n) {
        if (memory.size() < n + 64) memory.resize(n + 64);  // room to begin at a cache line, and to read a vector too far
        return memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64 / sizeof(T);
    }
};

// work(0) to work(n - 1), each by some thread. Calls may be nested if the inner one has one thread; then only the inner
// work multiplies, because it gives the tiles back when it ends.
template <typename Work>
static void in_parallel(int n, int threads, Work work) {
    if (threads <= 1 || n <= 1) {
        Tiles tiles;
        for (int i = 0; i < n; i++) work(i);
        return;
    }
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles;
#pragma omp for schedule(dynamic)
        for (int i = 0; i < n; i++) work(i);
    }
}

// ---- linear layers ---------------------------------------------------------------------------------------------------

struct Linear {
    const int8_t* weight;  // packed as engine_dot.h says
    const int32_t* start;  // -128 times the sum of each channel's weights
    const float *scale, *bias;
    int n, k;            // before padding
    float static_scale;  // of the activations; 0: from each row
    int columns() const { return up_to(32, n); }
    int depth() const { return up_to(64, k); }
};

enum Activation { NONE, GELU, RELU };

// Kept out of line: inlined into the products' loop it would take their registers.
template <Activation activation>
__attribute__((noinline)) static void finish(const int32_t* sums, int rows, const float* row_scale, const float* scale,
                                             const float* bias, const float* residual, float* y, long stride) {
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < 32; i += LANES) {
            Floats v = to_float(*(const Ints*)(sums + 32 * r + i)) * (row_scale[r] * load(scale + i)) + load(bias + i);
            if (activation == GELU) v = gelu(v);
            if (activation == RELU) v = v < 0.0f ? Floats{} : v;
            if (residual) v += load(residual + r * stride + i);
            store(y + r * stride + i, v);
        }
}

// y[rows][columns] of q[rows][depth]. 32 channels after 32 channels, so that their weights stay in the first cache.
static void multiply(const Linear& linear, const uint8_t* q, const float* row_scale, int rows, int activation,
                     const float* residual, float* y, long stride) {
    alignas(64) int32_t sums[32 * 32];
    const auto finishing = activation == GELU ? finish<GELU> : activation == RELU ? finish<RELU> : finish<NONE>;
    const int k = linear.depth();
    for (int n = 0; n < linear.columns(); n += 32)
        for (int r = 0; r < rows; r += 32) {
            const int some = std::min(32, rows - r);
            dot32(q + long(r) * k, k, some, linear.weight + long(n) * k, k, linear.start + n, sums, 32);
            finishing(sums, some, row_scale + r, linear.scale + n, linear.bias + n,
                      residual ? residual + r * stride + n : nullptr, y + r * stride + n, stride);
        }
}

extern "C" int pangu_init() { return allowed(); }

// y[rows][columns] = x[rows][k] times the weights. x is padded with zeros to a multiple of 16 columns (x_stride).
extern "C" void pangu_linear(const Linear* linear, const float* x, int x_stride, int rows, int activation,
                             const float* residual, float* y, int32_t* raw_sums, int threads) {
    const int k = linear->depth(), block = std::clamp(up_to(32, rows / std::max(threads, 1)), 32, 128);
    in_parallel((rows + block - 1) / block, threads, [&](int b) {
        static thread_local Buffer<uint8_t> bytes;
        uint8_t* q = bytes.get(long(block) * k);
        float scales[128];
        const long first = long(b) * block, stride = linear->columns();
        const int some = std::min(block, rows - int(first));
        for (int r = 0; r < some; r++)
            scales[r] = quantize_row(x + (first + r) * x_stride, x_stride, q + long(r) * k, k, linear->static_scale);
        if (raw_sums) {  // for tests: the integers themselves
            alignas(64) int32_t sums[32 * 32];
            for (int r = 0; r < some; r += 32)
                for (int n = 0; n < stride; n += 32) {
                    const int here = std::min(32, some - r);
                    dot32(q + long(r) * k, k, here, linear->weight + long(n) * k, k, linear->start + n, sums, 32);
                    for (int i = 0; i < here; i++)
                        std::memcpy(raw_sums + (first + r + i) * stride + n, sums + 32 * i, 32 * sizeof(int32_t));
                }
        }
        multiply(*linear, q, scales, some, activation, residual ? residual + first * stride : nullptr,
                 y + first * stride, stride);
    });
}

// ---- attention -------------------------------------------------------------------------------------------------------

struct Layer {
    Linear qkv, out, up, down;
    const float *norm1_weight, *norm1_bias, *norm2_weight, *norm2_bias;
    int heads, head_size;
};

// One row of a head, quantized. Rows of a head may end inside a vector, so they are copied if they do.
static float quantize_head(const float* x, int d, uint8_t* q, int k) {
    if (d % 16 == 0) return quantize_row(x, d, q, k, 0);
    float copy[512] = {};
    std::memcpy(copy, x, d * sizeof(float));
    return quantize_row(copy, up_to(16, d), q, k, 0);
}

// Keys as the weights of a linear layer whose channels are the tokens: one scale per token.
static void pack_keys(const float* x, long stride, int tokens, int d, int8_t* packed, int32_t* start, float* scale) {
    const int depth = up_to(64, d), padded = up_to(32, tokens);
    uint8_t row[512];
    uint32_t* words = reinterpret_cast<uint32_t*>(packed);
    std::memset(packed, 0, size_t(padded) * depth);
    for (int t = 0; t < padded; t++) {
        std::memset(row, 128, depth);
        scale[t] = t < tokens ? quantize_head(x + t * stride, d, row, depth) : 0.0f;
        int total = 0;
        for (int i = 0; i < depth; i++) total += row[i] - 128;
        start[t] = -128 * total;
        uint32_t* to = words + (t / 16) * (depth / 4) * 16 + t % 16;
        for (int i = 0; i < (d + 3) / 4; i++) to[16 * i] = uint32_t(four_bytes(row + 4 * i)) ^ 0x80808080u;
    }
}

// Values as weights whose k are the tokens: one scale per channel, four tokens of a channel side by side.
static void pack_values(const float* x, long stride, int tokens, int d, int8_t* packed, int32_t* total, float* scale) {
    const int depth = up_to(64, tokens);
    for (int c = 0; c < up_to(32, d); c += LANES) {
        if (c >= up_to(16, d)) {  // channels that only fill up the panel
            for (int i = 0; i < LANES; i++) scale[c + i] = 0, total[c + i] = 0;
            continue;
        }
        Ints most = {}, sums = {};
        for (int t = 0; t < tokens; t++) {
            Ints bits = (Ints)load(x + t * stride + c) & 0x7fffffff;
            most = bits > most ? bits : most;
        }
        Floats inverse = {}, magnitude = (Floats)most;
        for (int i = 0; i < LANES; i++) {
            scale[c + i] = scale_of(magnitude[i]);
            inverse[i] = std::isnan(scale[c + i]) ? 0.0f : 1.0f / scale[c + i];
        }
        int8_t* to = packed + (c / 16) * 16L * depth + c % 16 * 4;
        for (int t = 0; t < depth; t += 4) {
            Ints four = {};
            for (int j = 0; j < 4 && t + j < tokens; j++) {
                Ints q = nearest_integer(load(x + (t + j) * stride + c) * inverse);
                sums += q;
                four |= (q & 255) << (8 * j);
            }
            *(Ints*)(to + 16L * t) = four;
        }
        *(Ints*)(total + c) = sums;
    }
}

// One row of scores to weights p = 254 softmax / its maximum, rounded; returns their sum. Stored as the product wants
// them: u = p + 1, that is q = p - 127 with the zero point -127.
static float softmax_row(float* scores, int tokens, float factor, uint8_t* p) {
    for (int t = tokens; t < up_to(16, tokens); t++) scores[t] = -INFINITY;
    Floats most = all(-INFINITY), total = {};
    for (int t = 0; t < tokens; t += LANES) {
        Floats s = load(scores + t);
        most = s > most ? s : most;
    }
    const float top = maximum(most);
    for (int t = 0; t < tokens; t += LANES) {
        Floats x = at_least((load(scores + t) - top) * factor + 7.98868469f, -126.0f);  // 2^7.988… = 254
        Floats weight = power_of_two(x) + MAGIC;  // rounded, NaN still NaN
        total += weight - MAGIC;
        store_bytes(p + t, (Ints)weight - (MAGIC_BITS - 1));
    }
    return sum(total);
}

// Attention of one head over one text. qkv points at the text's first row; the result goes to `context`.
static void attend(const Layer& layer, int head, const float* qkv, long stride, int tokens, float* context, long context_stride) {
    const int d = layer.head_size, depth = up_to(64, d), padded = up_to(64, tokens), width = layer.heads * d;
    static thread_local Buffer<int8_t> keys, values;
    static thread_local Buffer<float> key_scales;
    static thread_local Buffer<int32_t> key_starts, products;
    static thread_local Buffer<uint8_t> bytes, weights;
    int8_t *packed_keys = keys.get(long(padded) * depth), *packed_values = values.get(long(padded) * up_to(32, d));
    float* key_scale = key_scales.get(padded);
    int32_t *key_start = key_starts.get(padded), *scores = products.get(32L * padded);
    uint8_t *q = bytes.get(32L * depth), *p = weights.get(32L * padded);
    int32_t value_total[512], value_start[512];
    float value_scale[512];
    const float *queries = qkv + head * d, *key = queries + width, *value = key + width;
    pack_keys(key, stride, tokens, d, packed_keys, key_start, key_scale);
    pack_values(value, stride, tokens, d, packed_values, value_total, value_scale);
    for (int c = 0; c < up_to(32, d); c++) value_start[c] = -128 * value_total[c];
    const float to_base_two = 1.44269504f / std::sqrt(float(d));

    for (int first = 0; first < tokens; first += 32) {
        const int rows = std::min(32, tokens - first);
        float query_scale[32], inverse_sum[32];
        for (int r = 0; r < rows; r++) query_scale[r] = quantize_head(queries + (first + r) * stride, d, q + r * depth, depth);
        for (int t = 0; t < tokens; t += 32)
            dot32(q, depth, rows, packed_keys + long(t) * depth, depth, key_start + t, scores + t, padded);
        for (int r = 0; r < rows; r++) {
            float* row = reinterpret_cast<float*>(scores + long(r) * padded);
            for (int t = 0; t < tokens; t += LANES) store(row + t, to_float(*(const Ints*)(row + t)) * load(key_scale + t));
            inverse_sum[r] = 1.0f / softmax_row(row, tokens, query_scale[r] * to_base_two, p + long(r) * padded);
        }
        for (int c = 0; c < d; c += 32) {
            alignas(64) int32_t sums[32 * 32];
            dot32(p, padded, rows, packed_values + long(c) * padded, padded, value_start + c, sums, 32);
            for (int r = 0; r < rows; r++) {
                float* to = context + (first + r) * context_stride + head * d + c;
                alignas(64) float out[32];
                for (int i = 0; i < 32; i += LANES)  // the zero point: p = q + 127
                    store(out + i, to_float(*(const Ints*)(sums + 32 * r + i) + 127 * *(const Ints*)(value_total + c + i)) *
                                       load(value_scale + c + i) * inverse_sum[r]);
                std::memcpy(to, out, std::min(32, d - c) * sizeof(float));
            }
        }
    }
}

// ---- the encoder -----------------------------------------------------------------------------------------------------

struct Encoder {
    const float* words;              // [vocabulary][d], or
    const int8_t* word_bytes;        // the same in int8, with
    const float* word_scale;         // one scale per row
    const float *positions, *segments;  // rows padded to a multiple of 32; segments may be null
    const float *norm_weight, *norm_bias;
    const Layer* layers;
    int layer_count, d, pre_norm, activation;
    float eps;
};

struct Text {
    int first, tokens;  // rows of the packed batch
};

// Some whole texts on their way through the encoder: rows of all real tokens, one after the other.
struct Pass {
    const Encoder& encoder;
    const int64_t *ids, *positions, *segments;
    const int* source;  // where in the padded batch a row comes from, and where it goes
    float* out;
    int rows, width = 0, stride = 0, context_stride = 0;
    float *x = nullptr, *qkv = nullptr, *context = nullptr;

    // Normalizes and quantizes for the next product; with post-norm the normalized row is also what goes on in x.
    float normalize(float* row, const float* weight, const float* bias, uint8_t* q, float static_scale, float* keep) const {
        alignas(64) float normed[8192];
        float* to = encoder.pre_norm ? normed : row;
        layer_norm(row, encoder.d, width, weight, bias, encoder.eps, to);
        if (keep) std::memcpy(keep, to, encoder.d * sizeof(float));
        return quantize_row(to, width, q, up_to(64, encoder.d), static_scale);
    }

    void embed(int first, int count) const {
        static thread_local Buffer<uint8_t> bytes;
        const Linear& next = encoder.layers[0].qkv;
        uint8_t* q = bytes.get(long(up_to(32, count)) * next.depth());
        float scales[128];
        for (int r = 0; r < count; r++) {
            const int from = source[first + r];
            float* row = x + long(first + r) * width;
            const float* position = encoder.positions + positions[from] * width;
            const float* segment = encoder.segments ? encoder.segments + (segments ? segments[from] : 0) * width : nullptr;
            for (int i = 0; i < width; i++) {
                float word = encoder.words ? encoder.words[ids[from] * width + i]
                                           : encoder.word_bytes[ids[from] * width + i] * encoder.word_scale[ids[from]];
                row[i] = word + position[i] + (segment ? segment[i] : 0.0f);
            }
            scales[r] = normalize(row, encoder.norm_weight, encoder.norm_bias, q + long(r) * next.depth(), next.static_scale, nullptr);
        }
        multiply(next, q, scales, count, NONE, nullptr, qkv + long(first) * stride, stride);
    }

    void after_attend(int index, int first, int count) const {
        static thread_local Buffer<uint8_t> bytes;
        static thread_local Buffer<float> floats;
        const Layer& layer = encoder.layers[index];
        const bool last = index + 1 == encoder.layer_count;
        const Linear* next = last ? nullptr : &encoder.layers[index + 1].qkv;
        const int depth = std::max({layer.out.depth(), layer.up.depth(), layer.down.depth()});
        uint8_t* q = bytes.get(long(up_to(32, count)) * depth);
        float *inner = floats.get(long(count) * layer.up.columns()), *rows_x = x + long(first) * width, scales[128];

        for (int r = 0; r < count; r++) {
            float* row = context + long(first + r) * context_stride;
            std::fill(row + layer.out.k, row + up_to(16, layer.out.k), 0.0f);
            scales[r] = quantize_row(row, up_to(16, layer.out.k), q + long(r) * layer.out.depth(), layer.out.depth(), layer.out.static_scale);
        }
        multiply(layer.out, q, scales, count, NONE, rows_x, rows_x, width);
        for (int r = 0; r < count; r++)
            scales[r] = normalize(rows_x + long(r) * width, layer.norm1_weight, layer.norm1_bias,
                                  q + long(r) * layer.up.depth(), layer.up.static_scale, nullptr);
        multiply(layer.up, q, scales, count, encoder.activation, nullptr, inner, layer.up.columns());
        for (int r = 0; r < count; r++)
            scales[r] = quantize_row(inner + long(r) * layer.up.columns(), layer.up.columns(),
                                     q + long(r) * layer.down.depth(), layer.down.depth(), layer.down.static_scale);
        multiply(layer.down, q, scales, count, NONE, rows_x, rows_x, width);
        for (int r = 0; r < count; r++)
            scales[r] = normalize(rows_x + long(r) * width, layer.norm2_weight, layer.norm2_bias,
                                  q + long(r) * up_to(64, encoder.d), next ? next->static_scale : 0.0f,
                                  last ? out + long(source[first + r]) * encoder.d : nullptr);
        if (next) multiply(*next, q, scales, count, NONE, nullptr, qkv + long(first) * stride, stride);
    }

    void run(const std::vector<Text>& texts, int threads) {
        static thread_local Buffer<float> xs, qkvs, contexts;
        width = up_to(32, encoder.d);
        for (int i = 0; i < encoder.layer_count; i++) {
            stride = std::max(stride, encoder.layers[i].qkv.columns());
            context_stride = std::max(context_stride, up_to(16, encoder.layers[i].out.k));
        }
        x = xs.get(long(rows) * width);
        qkv = qkvs.get(long(rows) * stride);
        context = contexts.get(long(rows) * context_stride);
        const int block = std::clamp(up_to(16, rows / std::max(threads, 1)), 16, BLOCK_ROWS), blocks = (rows + block - 1) / block;
        const int count = int(texts.size());
        in_parallel(blocks, threads, [&](int b) { embed(b * block, std::min(block, rows - b * block)); });
        for (int i = 0; i < encoder.layer_count; i++) {
            const Layer& layer = encoder.layers[i];
            in_parallel(count * layer.heads, threads, [&](int task) {
                const Text text = texts[task / layer.heads];
                attend(layer, task % layer.heads, qkv + long(text.first) * stride, stride, text.tokens,
                       context + long(text.first) * context_stride, context_stride);
            });
            in_parallel(blocks, threads, [&](int b) { after_attend(i, b * block, std::min(block, rows - b * block)); });
        }
    }

    static const int BLOCK_ROWS = 64;
};

// Hidden states out[texts][length][d] of a padded batch: mask is 1 for tokens and 0 for padding, whose states are zero.
// Many texts: each thread takes some through all layers, alone. Few: all threads work on the same texts.
extern "C" void pangu_encode(const Encoder* encoder, const int64_t* ids, const int64_t* mask, const int64_t* positions,
                             const int64_t* segments, int texts, int length, float* out, int threads) {
    std::vector<int> source;
    std::vector<std::vector<Text>> groups(1);
    std::vector<int> group_first(1, 0);
    long total = 0;
    for (long i = 0; i < long(texts) * length; i++) total += mask[i] != 0;
    const int enough = std::clamp(int(total / (4 * threads)), 64, 256);  // tokens a group should have
    for (int b = 0; b < texts; b++) {
        if (int(source.size()) - group_first.back() >= enough) {
            groups.emplace_back();
            group_first.push_back(int(source.size()));
        }
        const int first = int(source.size());
        for (int i = b * length; i < (b + 1) * length; i++) {
            if (mask[i]) source.push_back(i);
            else std::memset(out + long(i) * encoder->d, 0, encoder->d * sizeof(float));
        }
        if (int(source.size()) > first) groups.back().push_back({first - group_first.back(), int(source.size()) - first});
    }
    const bool together = int(groups.size()) < 2 * threads;
    if (together && groups.size() > 1) {  // one group of all
        for (size_t g = 1; g < groups.size(); g++)
            for (Text text : groups[g]) groups[0].push_back({text.first + group_first[g], text.tokens});
        groups.resize(1);
    }
    in_parallel(int(groups.size()), threads, [&](int g) {
        const int first = group_first[g], end = g + 1 < int(groups.size()) ? group_first[g + 1] : int(source.size());
        Pass pass{*encoder, ids, positions, segments, source.data() + first, out, end - first};
        if (end > first) pass.run(groups[g], together ? threads : 1);
    });
}
