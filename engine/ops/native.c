/* What a decode step on a CPU spends outside of its matrix products, for float32 and bfloat16.
 *
 * Why not torch: for one new token its attention takes 0.4-0.9 ms a layer at batch 16 and 100
 * tokens of context, where reading the keys and values takes 0.05; and each of the eight small
 * calls around it costs 3-12 us whatever it does. Plain loops that a compiler vectorises; sums are
 * float32, and NaN stays NaN.
 */

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define TILE 128
#define MAX_DEPTH 256
#define MAX_GROUP 16

typedef uint16_t bf16;

INLINE float wide(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

INLINE bf16 narrow(float x) { /* to nearest, ties to even; NaN stays NaN */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bf16)((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

INLINE float get(const void *p, int64_t i, int half) {
    return half ? wide(((const bf16 *)p)[i]) : ((const float *)p)[i];
}

INLINE void put(void *p, int64_t i, float x, int half) {
    if (half)
        ((bf16 *)p)[i] = narrow(x);
    else
        ((float *)p)[i] = x;
}

INLINE const void *at(const void *p, int64_t i, int half) {
    return (const char *)p + i * (half ? 2 : 4);
}

/* e^x within 2 ulp between -87 and 88, clamped there (Cephes' polynomial over [-ln2/2, ln2/2]).
 * No branches, or loops around it are not vectorised. The compiler may believe that there is no
 * NaN (-ffinite-math-only, without which it makes branches of the clamps), so NaN goes by bits. */
INLINE float exponential(float given) {
    float x = given > -87.0f ? given : -87.0f;
    x = x < 88.0f ? x : 88.0f;
    float scaled = x * 1.44269504f;
    int32_t n = (int32_t)(scaled + __builtin_copysignf(0.5f, scaled));
    float r = x - (float)n * 0.693359375f;
    r = r + (float)n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t bits = (uint32_t)(n + 127) << 23;
    float power, y;
    memcpy(&power, &bits, 4);
    y = p * power;
    uint32_t asked, found;
    memcpy(&asked, &given, 4);
    memcpy(&found, &y, 4);
    found |= (asked & 0x7fffffff) > 0x7f800000 ? 0x7fc00000 : 0;
    memcpy(&y, &found, 4);
    return y;
}

/* --- norms and gates ---------------------------------------------------------------------- */

INLINE void rms_norm_(const void *x, const void *residual, const void *weight, void *out,
                      void *total, int64_t rows, int64_t width, float eps, const int half) {
    for (int64_t row = 0; row < rows; row++) {
        int64_t from = row * width;
        float sum = 0;
        for (int64_t i = 0; i < width; i++) {
            float t = get(x, from + i, half) + (residual ? get(residual, from + i, half) : 0.0f);
            put(total, from + i, t, half);
            t = get(total, from + i, half);
            sum += t * t;
        }
        float scale = 1.0f / __builtin_sqrtf(sum / (float)width + eps);
        for (int64_t i = 0; i < width; i++)
            put(out, from + i, get(total, from + i, half) * scale * get(weight, i, half), half);
    }
}

/* [rows, width] each: out = norm(x + residual) * weight, total = x + residual */
void drawloom_rms_norm(const void *x, const void *residual, const void *weight, void *out,
                       void *total, int64_t rows, int64_t width, float eps, int half) {
    if (half)
        rms_norm_(x, residual, weight, out, total, rows, width, eps, 1);
    else
        rms_norm_(x, residual, weight, out, total, rows, width, eps, 0);
}

INLINE void silu_mul_(const void *x, void *out, int64_t rows, int64_t width, const int half) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < width; i++) {
            float gate = get(x, 2 * row * width + i, half);
            float up = get(x, (2 * row + 1) * width + i, half);
            put(out, row * width + i, gate / (1.0f + exponential(-gate)) * up, half);
        }
}

/* [rows, 2 width] to [rows, width]: silu of the first half times the second */
void drawloom_silu_mul(const void *x, void *out, int64_t rows, int64_t width, int half) {
    if (half)
        silu_mul_(x, out, rows, width, 1);
    else
        silu_mul_(x, out, rows, width, 0);
}

/* --- rotation and the cache --------------------------------------------------------------- */

INLINE void rotate(const void *x, int64_t from, void *y, int64_t to, const float *cos,
                   const float *sin, int64_t depth, const int half) {
    int64_t middle = depth / 2;
    for (int64_t i = 0; i < middle; i++) {
        float a = get(x, from + i, half), b = get(x, from + middle + i, half);
        put(y, to + i, a * cos[i] - b * sin[i], half);
        put(y, to + middle + i, b * cos[i] + a * sin[i], half);
    }
}

INLINE void rope_store_(const void *q, const void *k, const void *v, void *rotated, void *keys,
                        void *values, const float *cos, const float *sin,
                        const int64_t *positions, const int64_t *slots, int64_t tokens,
                        int64_t heads, int64_t kv_heads, int64_t depth, int64_t q_stride,
                        int64_t k_stride, int64_t v_stride, int64_t head_stride,
                        int64_t slot_stride, const int half) {
    for (int64_t t = 0; t < tokens; t++) {
        const float *c = cos + positions[t] * (depth / 2), *s = sin + positions[t] * (depth / 2);
        for (int64_t h = 0; h < heads; h++)
            rotate(q, t * q_stride + h * depth, rotated, (t * heads + h) * depth, c, s, depth, half);
        for (int64_t h = 0; h < kv_heads; h++) {
            int64_t to = h * head_stride + slots[t] * slot_stride;
            rotate(k, t * k_stride + h * depth, keys, to, c, s, depth, half);
            memcpy((char *)values + to * (half ? 2 : 4), at(v, t * v_stride + h * depth, half),
                   (size_t)depth * (half ? 2 : 4));
        }
    }
}

/* Rotates q and k of `tokens` tokens (a row every *_stride elements, heads side by side) and puts
 * k and v into slots of the cache, [kv_heads, slots, depth] with the strides given. */
void drawloom_rope_store(const void *q, const void *k, const void *v, void *rotated, void *keys,
                         void *values, const float *cos, const float *sin,
                         const int64_t *positions, const int64_t *slots, int64_t tokens,
                         int64_t heads, int64_t kv_heads, int64_t depth, int64_t q_stride,
                         int64_t k_stride, int64_t v_stride, int64_t head_stride,
                         int64_t slot_stride, int half) {
    if (half)
        rope_store_(q, k, v, rotated, keys, values, cos, sin, positions, slots, tokens, heads,
                    kv_heads, depth, q_stride, k_stride, v_stride, head_stride, slot_stride, 1);
    else
        rope_store_(q, k, v, rotated, keys, values, cos, sin, positions, slots, tokens, heads,
                    kv_heads, depth, q_stride, k_stride, v_stride, head_stride, slot_stride, 0);
}

/* --- attention ---------------------------------------------------------------------------- */

INLINE float dot(const float *q, const void *k, const int depth, const int half) {
    float sum = 0;
    for (int i = 0; i < depth; i++) sum += q[i] * get(k, i, half);
    return sum;
}

/* One token's `group` queries over slots `first` to `last` of one key head, softmax online over
 * tiles (Milakov and Gimelshein 2018). */
INLINE void attend(const void *q, const void *keys, const void *values, void *out,
                   const int32_t *table, int64_t first, int64_t last, int64_t size,
                   int64_t slot_stride, float scale, const int group, const int depth,
                   const int half) {
    float asked[MAX_GROUP * MAX_DEPTH], sums[MAX_GROUP * MAX_DEPTH];
    float most[MAX_GROUP], weight[MAX_GROUP], scores[MAX_GROUP][TILE];
    int64_t where[TILE];
    for (int i = 0; i < group * depth; i++) {
        asked[i] = get(q, i, half) * scale;
        sums[i] = 0;
    }
    for (int g = 0; g < group; g++) most[g] = -3e38f, weight[g] = 0;
    for (int64_t start = first; start < last; start += TILE) {
        int count = (int)(last - start < TILE ? last - start : TILE);
        for (int t = 0; t < count; t++) {
            int64_t place = start + t;
            where[t] = ((int64_t)table[place / size] * size + place % size) * slot_stride;
            for (int i = 0; i < depth; i += half ? 32 : 16) {
                __builtin_prefetch(at(keys, where[t] + i, half));
                __builtin_prefetch(at(values, where[t] + i, half));
            }
        }
        for (int t = 0; t < count; t++) {
            const void *k = at(keys, where[t], half);
            for (int g = 0; g < group; g++) scores[g][t] = dot(asked + g * depth, k, depth, half);
        }
        for (int g = 0; g < group; g++) {
            float high = most[g], total = 0;
            for (int t = 0; t < count; t++) high = scores[g][t] > high ? scores[g][t] : high;
            float shrink = exponential(most[g] - high);
            for (int t = 0; t < count; t++) {
                scores[g][t] = exponential(scores[g][t] - high);
                total += scores[g][t];
            }
            weight[g] = weight[g] * shrink + total;
            for (int i = 0; i < depth; i++) sums[g * depth + i] *= shrink;
            most[g] = high;
        }
        for (int t = 0; t < count; t++) {
            const void *v = at(values, where[t], half);
            for (int g = 0; g < group; g++) {
                float p = scores[g][t];
                for (int i = 0; i < depth; i++) sums[g * depth + i] += p * get(v, i, half);
            }
        }
    }
    for (int g = 0; g < group; g++) {
        float inverse = 1.0f / weight[g];
        for (int i = 0; i < depth; i++) put(out, g * depth + i, sums[g * depth + i] * inverse, half);
    }
}

typedef struct {
    const void *q, *keys, *values;
    void *out;
    const int32_t *tables;   /* the blocks of every sequence, end to end */
    const int32_t *widths;   /* [sequences] blocks of each */
    const int32_t *counts;   /* [sequences] new tokens of each */
    const int32_t *contexts; /* [sequences] tokens of each, the new ones included */
    int64_t sequences, heads, kv_heads, depth, size, head_stride, slot_stride, window;
    float scale;
} attention_t;

INLINE void attention_(const attention_t *a, const int group, const int depth, const int half) {
    const int32_t *table = a->tables;
    int64_t token = 0;
    for (int64_t b = 0; b < a->sequences; b++) {
        for (int32_t n = 0; n < a->counts[b]; n++, token++) {
            int64_t last = a->contexts[b] - a->counts[b] + n + 1;
            int64_t first = a->window && last > a->window ? last - a->window : 0;
            for (int64_t h = 0; h < a->kv_heads; h++) {
                int64_t from = (token * a->heads + h * group) * depth;
                attend(at(a->q, from, half), at(a->keys, h * a->head_stride, half),
                       at(a->values, h * a->head_stride, half), (void *)at(a->out, from, half),
                       table, first, last, a->size, a->slot_stride, a->scale, group, depth, half);
            }
        }
        table += a->widths[b];
    }
}

#define KNOWN(G, D)                                                                              \
    if (group == G && a->depth == D) {                                                           \
        if (half)                                                                                \
            attention_(a, G, D, 1);                                                              \
        else                                                                                     \
            attention_(a, G, D, 0);                                                              \
        return 0;                                                                                \
    }
#define DEPTHS(G) KNOWN(G, 32) KNOWN(G, 64) KNOWN(G, 128)

/* Causal attention of the new tokens, paged and grouped; 1 for a shape that it does not do.
 * The usual groups and depths are compiled as constants, all others as they come. */
int drawloom_attention(const attention_t *a, int half) {
    int group = (int)(a->heads / a->kv_heads);
    if (group > MAX_GROUP || a->depth > MAX_DEPTH) return 1;
    DEPTHS(1)
    DEPTHS(2)
    DEPTHS(4)
    DEPTHS(8)
    if (half)
        attention_(a, group, (int)a->depth, 1);
    else
        attention_(a, group, (int)a->depth, 0);
    return 0;
}
