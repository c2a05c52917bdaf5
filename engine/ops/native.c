/* What a decode step on a CPU spends outside of its matrix products, for float32 and bfloat16.
 *
 * Why not torch: for one new token its attention takes 0.4-0.9 ms a layer at batch 16 and 100
 * tokens of context, where reading the keys and values takes 0.05; and each of the eight small
 * calls around it costs 3-12 us whatever it does. Plain loops that a compiler vectorises; sums are
 * float32, and NaN stays NaN.
 */

#include <stdint.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define MAX_DEPTH 256
#define QUERIES 96 /* rows of a tile of attention: new tokens times heads of a group */
#define KEYS 64

/* numbers of a vector, and the vectors that a product keeps in registers */
#if defined __AVX512F__
#define LANES 16
#define ROWS 6
#define COLUMNS 4
#elif defined __AVX__
#define LANES 8
#define ROWS 6
#define COLUMNS 2
#else
#define LANES 4
#define ROWS 6
#define COLUMNS 4
#endif


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

/* GOMP_parallel of the OpenMP that torch has loaded, so that there is one team of threads */
typedef void (*parallel_t)(void (*)(void *), void *, unsigned, unsigned);

/* How many threads to use, and the next piece of work that none of them has taken. */
typedef struct {
    parallel_t parallel;
    int64_t threads, next;
} team_t;

INLINE void share(team_t *team, void (*work)(void *), void *data) {
    team->next = 0;
    if (team->threads > 1)
        team->parallel(work, data, (unsigned)team->threads, 0);
    else
        work(data);
}

INLINE int64_t take(team_t *team) { return __atomic_fetch_add(&team->next, 1, __ATOMIC_RELAXED); }

/* 2^x within 2 ulp for x <= 0, 2^-125 below that; NaN stays NaN, as the sum does that it is in. */
INLINE float power(float given) {
    float x = given > -125.0f ? given : -125.0f;
    int32_t n = (int32_t)(x - 0.5f); /* to nearest, of what is not above zero */
    float r = x - (float)n;
    float p = 1.5353362e-4f;
    p = p * r + 1.3398874e-3f;
    p = p * r + 9.6184373e-3f;
    p = p * r + 5.5503324e-2f;
    p = p * r + 2.4022649e-1f;
    p = p * r + 6.9314718e-1f;
    p = p * r + 1.0f;
    uint32_t bits = (uint32_t)(n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    float y = p * scale;
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

/* Tiles of keys against tiles of queries, softmax online (Milakov and Gimelshein 2018; Dao 2023).
 * All is in words of 32 bits: a float, or two bfloat16 of which a product sums both.
 * A row's arithmetic is the same whatever else is in its tile: key tiles begin at multiples of KEYS.
 */

typedef float vfloat __attribute__((vector_size(4 * LANES), may_alias));
typedef uint32_t vword __attribute__((vector_size(4 * LANES), may_alias));
typedef uint32_t vword_at __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* a + b c, of floats or of pairs; `b` is the same in all lanes */
INLINE vfloat multiply_add(vfloat a, uint32_t b, vword c, const int half) {
    if (half) {
#ifdef __AVX512BF16__
        return (vfloat)_mm512_dpbf16_ps((__m512)a, (__m512bh)((vword){0} + b), (__m512bh)c);
#else
        a += wide((bf16)b) * (vfloat)(c << 16);
        return a + wide((bf16)(b >> 16)) * (vfloat)(c & 0xffff0000u);
#endif
    }
    float x;
    memcpy(&x, &b, 4);
    return a + x * (vfloat)c;
}

/* c[rows][columns * LANES] (+)= a[rows][n] b[n][...], in registers */
INLINE void block(float *c, int64_t c_stride, const uint32_t *a, int64_t a_stride,
                  const uint32_t *b, int64_t b_stride, int n, int add, const int rows,
                  const int columns, const int half) {
    vfloat sums[ROWS][COLUMNS];
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < columns; j++)
            sums[r][j] = add ? *(vfloat *)(c + r * c_stride + j * LANES) : (vfloat){0};
    for (int i = 0; i < n; i++) {
        vword x[COLUMNS];
        for (int j = 0; j < columns; j++) x[j] = *(const vword *)(b + i * b_stride + j * LANES);
        for (int r = 0; r < rows; r++) {
            uint32_t y = a[r * a_stride + i];
            for (int j = 0; j < columns; j++) sums[r][j] = multiply_add(sums[r][j], y, x[j], half);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < columns; j++) *(vfloat *)(c + r * c_stride + j * LANES) = sums[r][j];
}

#define BLOCK(R)                                                                                 \
    while (rows - r >= R) {                                                                      \
        for (int64_t j = 0; j < width; j += COLUMNS * LANES) {                                   \
            if (width - j >= COLUMNS * LANES)                                                    \
                block(c + r * c_stride + j, c_stride, a + r * a_stride, a_stride, b + j,         \
                      width, n, add, R, COLUMNS, half);                                          \
            else                                                                                 \
                block(c + r * c_stride + j, c_stride, a + r * a_stride, a_stride, b + j,         \
                      width, n, add, R, COLUMNS / 2, half);                                      \
        }                                                                                        \
        r += R;                                                                                  \
    }

/* c[rows][width] (+)= a[rows][n] b[n][width]; width is a multiple of half a block's */
INLINE void product(float *c, int64_t c_stride, const uint32_t *a, int64_t a_stride,
                    const uint32_t *b, int64_t width, int64_t rows, int n, int add,
                    const int half) {
    int64_t r = 0;
    BLOCK(ROWS)
    BLOCK(3)
    BLOCK(2)
    BLOCK(1)
}

/* to[i][j] = from[j][i] for LANES rows of LANES words, by log2(LANES) rounds of interleaving */
INLINE void transpose(const uint32_t *const *from, int64_t offset, uint32_t *to) {
    vword x[LANES], y[LANES];
    vword low, high;
    for (int i = 0; i < LANES; i++) {
        low[i] = (uint32_t)(i / 2 + i % 2 * LANES);
        high[i] = (uint32_t)(i / 2 + i % 2 * LANES + LANES / 2);
        x[i] = *(const vword_at *)(from[i] + offset);
    }
    for (int round = 1; round < LANES; round *= 2) {
        for (int i = 0; i < LANES / 2; i++) {
            y[2 * i] = __builtin_shuffle(x[i], x[i + LANES / 2], low);
            y[2 * i + 1] = __builtin_shuffle(x[i], x[i + LANES / 2], high);
        }
        for (int i = 0; i < LANES; i++) x[i] = y[i];
    }
    for (int i = 0; i < LANES; i++) *(vword *)(to + i * KEYS) = x[i];
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
    int half;
    team_t team;
} attention_t;

/* New tokens of a sequence, at most `QUERIES / group`, for one key head. */
typedef struct {
    const int32_t *table;
    int64_t token, start; /* the first one's place in the step and in its sequence */
    int count;
    int64_t head;
} tile_t;

typedef struct {
    uint32_t q[QUERIES * MAX_DEPTH], keys[MAX_DEPTH * KEYS], values[KEYS * MAX_DEPTH];
    uint32_t padded[2 * KEYS * MAX_DEPTH], zeros[MAX_DEPTH];
    float sums[QUERIES * MAX_DEPTH], scores[QUERIES * KEYS];
    float most[QUERIES], weight[QUERIES];
    const uint32_t *k_rows[KEYS], *v_rows[KEYS];
    int64_t next[KEYS];
} __attribute__((aligned(64))) scratch_t;

INLINE float larger(float x, float y) { return x > y ? x : y; }

/* Scores of a row to weights, 2^(scale (score - highest)), of keys `first` to `last` only; what they add up to, and what the
 * sums so far are to be multiplied with. */
INLINE float soften(float *s, float scale, int first, int last, float *most, float *weight) {
    float high = *most, total = 0;
    if (first > 0 || last < KEYS)
        for (int t = 0; t < KEYS; t++) s[t] = t >= first && t < last ? s[t] : -3e38f;
    for (int t = 0; t < KEYS; t++) high = larger(s[t], high);
    for (int t = 0; t < KEYS; t++) {
        s[t] = power((s[t] - high) * scale);
        total += s[t];
    }
    if (first > 0 || last < KEYS) {
        total = 0;
        for (int t = 0; t < KEYS; t++) {
            s[t] = t >= first && t < last ? s[t] : 0.0f;
            total += s[t];
        }
    }
    float shrink = *most == high ? 1.0f : power((*most - high) * scale);
    *weight = *weight * shrink + total;
    *most = high;
    return shrink;
}

/* The weights of keys t and t + KEYS / 2 as one word. */
INLINE void pair(float *s) {
#ifdef __AVX512BF16__
    for (int t = 0; t < KEYS / 2; t += 16) {
        __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_load_ps(s + t)));
        __m512i high = _mm512_cvtepu16_epi32(
            (__m256i)_mm512_cvtneps_pbh(_mm512_load_ps(s + t + KEYS / 2)));
        _mm512_store_si512(s + t, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
#else
    for (int t = 0; t < KEYS / 2; t++) {
        uint32_t both = narrow(s[t]) | (uint32_t)narrow(s[t + KEYS / 2]) << 16;
        memcpy(s + t, &both, 4);
    }
#endif
}

INLINE const uint32_t *words(const void *p, int64_t i, int64_t depth, int64_t padded,
                             uint32_t *room, const int half) {
    const uint32_t *row = at(p, i, half);
    if (padded == depth) return row;
    memcpy(room, row, (size_t)depth * (half ? 2 : 4));
    return room;
}

/* Where the keys of a tile begin in a head's memory, those from `start` to `last`. */
INLINE void places(const attention_t *a, const tile_t *tile, int64_t start, int64_t last,
                   int64_t *where) {
    int64_t block = start / a->size, offset = start % a->size;
    for (int t = 0; t < KEYS && start + t < last; t++) {
        where[t] = ((int64_t)tile->table[block] * a->size + offset) * a->slot_stride;
        if (++offset == a->size) block++, offset = 0;
    }
}

INLINE void attend(const attention_t *a, const tile_t *tile, scratch_t *m, const int half) {
    const int64_t group = a->heads / a->kv_heads, depth = a->depth;
    const int64_t padded = (depth + 2 * LANES - 1) / (2 * LANES) * (2 * LANES);
    const int64_t width = half ? padded / 2 : padded; /* words of a key */
    const int64_t rows = tile->count * group, last = tile->start + tile->count;
    const int64_t first = a->window && tile->start + 1 > a->window ? tile->start + 1 - a->window : 0;
    const void *keys = at(a->keys, tile->head * a->head_stride, half);
    const void *values = at(a->values, tile->head * a->head_stride, half);
    if (padded != depth) {
        memset(m->q, 0, (size_t)(rows * width) * 4);
        memset(m->padded, 0, sizeof m->padded);
    }
    memset(m->zeros, 0, sizeof m->zeros);
    memset(m->sums, 0, (size_t)(rows * padded) * 4);
    for (int64_t r = 0; r < rows; r++) {
        int64_t from = ((tile->token + r / group) * a->heads + tile->head * group + r % group) * depth;
        memcpy(m->q + r * width, at(a->q, from, half), (size_t)depth * (half ? 2 : 4));
        m->most[r] = -3e38f, m->weight[r] = 0;
    }
    places(a, tile, first / KEYS * KEYS, last, m->next);
    for (int64_t start = first / KEYS * KEYS; start < last; start += KEYS) {
        for (int t = 0; t < KEYS; t++) {
            uint32_t *room = m->padded + 2 * t * MAX_DEPTH;
            m->k_rows[t] = m->v_rows[t] = m->zeros;
            if (start + t < first || start + t >= last) continue;
            m->k_rows[t] = words(keys, m->next[t], depth, padded, room, half);
            m->v_rows[t] = words(values, m->next[t], depth, padded, room + MAX_DEPTH, half);
        }
        places(a, tile, start + KEYS, last, m->next);
        for (int t = 0; t < KEYS && start + KEYS + t < last; t++)
            for (int64_t i = 0; i < depth; i += half ? 32 : 16) {
                __builtin_prefetch(at(keys, m->next[t] + i, half), 0, 2);
                __builtin_prefetch(at(values, m->next[t] + i, half), 0, 2);
            }
        for (int t = 0; t < KEYS; t += LANES)
            for (int64_t w = 0; w < width; w += LANES)
                transpose(m->k_rows + t, w, m->keys + w * KEYS + t);
        product(m->scores, KEYS, m->q, width, m->keys, KEYS, rows, (int)width, 0, half);
        for (int64_t r = 0; r < rows; r++) {
            float *s = m->scores + r * KEYS, *sums = m->sums + r * padded;
            int64_t end = tile->start + r / group + 1; /* of what this token sees */
            int64_t begin = a->window && end > a->window ? end - a->window - start : 0;
            float shrink = soften(s, a->scale * 1.44269504f, begin > 0 ? (int)begin : 0,
                                  end - start < KEYS ? (int)(end - start) : KEYS, m->most + r,
                                  m->weight + r);
            if (shrink != 1.0f)
                for (int64_t i = 0; i < padded; i++) sums[i] *= shrink;
            if (half) pair(s);
        }
        if (half) /* even dimensions, then odd ones */
            for (int t = 0; t < KEYS / 2; t++)
                for (int64_t w = 0; w < width; w += LANES) {
                    vword x = *(const vword_at *)(m->v_rows[t] + w);
                    vword y = *(const vword_at *)(m->v_rows[t + KEYS / 2] + w);
                    uint32_t *to = m->values + t * padded + w;
                    *(vword *)to = (x & 0xffff) | y << 16;
                    *(vword *)(to + width) = x >> 16 | (y & 0xffff0000u);
                }
        else
            for (int t = 0; t < KEYS; t++)
                for (int64_t w = 0; w < width; w += LANES)
                    *(vword *)(m->values + t * padded + w) = *(const vword_at *)(m->v_rows[t] + w);
        product(m->sums, padded, (const uint32_t *)m->scores, KEYS, m->values, padded, rows,
                half ? KEYS / 2 : KEYS, 1, half);
    }
    for (int64_t r = 0; r < rows; r++) {
        int64_t to = ((tile->token + r / group) * a->heads + tile->head * group + r % group) * depth;
        const float *sums = m->sums + r * padded;
        float inverse = 1.0f / m->weight[r];
        if (half)
            for (int64_t i = 0; i < depth / 2; i++) {
                put(a->out, to + 2 * i, sums[i] * inverse, 1);
                put(a->out, to + 2 * i + 1, sums[padded / 2 + i] * inverse, 1);
            }
        else
            for (int64_t i = 0; i < depth; i++) put(a->out, to + i, sums[i] * inverse, 0);
    }
}

static void attend_float(const attention_t *a, const tile_t *tile, scratch_t *m) {
    attend(a, tile, m, 0);
}

static void attend_half(const attention_t *a, const tile_t *tile, scratch_t *m) {
    attend(a, tile, m, 1);
}

/* How many tiles the new tokens of a sequence are cut into. */
INLINE int64_t tiles_of(const attention_t *a, int64_t b) {
    int64_t rows = a->counts[b] * (a->heads / a->kv_heads);
    int64_t at_once = QUERIES / (a->heads / a->kv_heads) * (a->heads / a->kv_heads);
    int64_t tiles = (rows + at_once - 1) / at_once;
    /* few tiles leave threads idle at the end; but each reads all the keys */
    while (a->team.threads > 1 && tiles * a->kv_heads * a->sequences < 4 * a->team.threads &&
           rows / (2 * tiles) >= 32)
        tiles *= 2;
    return tiles;
}

/* Takes tiles as long as there are any; in every thread. */
static void attention_part(void *given) {
    attention_t *a = given;
    scratch_t memory;
    int64_t begin = 0, b = 0, token = 0;
    const int32_t *table = a->tables;
    for (;;) {
        int64_t index = take(&a->team), tiles = 0;
        for (; b < a->sequences; b++) {
            tiles = tiles_of(a, b);
            if (index < begin + tiles * a->kv_heads) break;
            begin += tiles * a->kv_heads;
            token += a->counts[b];
            table += a->widths[b];
        }
        if (b == a->sequences) return;
        /* the last tokens first: they have the most keys */
        int64_t n = tiles - 1 - (index - begin) / a->kv_heads;
        int64_t from = a->counts[b] * n / tiles, to = a->counts[b] * (n + 1) / tiles;
        tile_t tile = {table, token + from, a->contexts[b] - a->counts[b] + from,
                       (int)(to - from), (index - begin) % a->kv_heads};
        (a->half ? attend_half : attend_float)(a, &tile, &memory);
    }
}

/* Causal attention of the new tokens, paged and grouped; 1 for a shape that it does not do. */
int drawloom_attention(attention_t *a) {
    if (a->heads / a->kv_heads > QUERIES || a->depth > MAX_DEPTH) return 1;
    share(&a->team, attention_part, a);
    return 0;
}

/* --- products with weights ---------------------------------------------------------------- */

#define PANEL 64 /* outputs that lie side by side in packed weights */
#define HEIGHT 48

typedef struct {
    const uint32_t *x;       /* [rows, inputs] words */
    const uint32_t *weights; /* [panels, inputs, PANEL] words */
    const void *bias;
    void *out; /* [rows, outputs] */
    int64_t rows, inputs, outputs;
    int half;
    team_t team;
} linear_t;

INLINE void panel(const linear_t *l, int64_t first, int64_t rows, int64_t column, float *sums,
                  const int half) {
    product(sums, PANEL, l->x + first * l->inputs, l->inputs, l->weights + column * l->inputs,
            PANEL, rows, (int)l->inputs, 0, half);
    int64_t width = l->outputs - column < PANEL ? l->outputs - column : PANEL;
    if (l->bias)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < width; i++)
                sums[r * PANEL + i] += get(l->bias, column + i, half);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < width; i++)
            put(l->out, (first + r) * l->outputs + column + i, sums[r * PANEL + i], half);
}

static void linear_part(void *given) {
    linear_t *l = given;
    float sums[HEIGHT * PANEL] __attribute__((aligned(64)));
    int64_t pieces = (l->rows + HEIGHT - 1) / HEIGHT, panels = (l->outputs + PANEL - 1) / PANEL;
    for (int64_t i; (i = take(&l->team)) < pieces * panels;) {
        int64_t first = i % pieces * HEIGHT;
        int64_t rows = l->rows - first < HEIGHT ? l->rows - first : HEIGHT;
        if (l->half)
            panel(l, first, rows, i / pieces * PANEL, sums, 1);
        else
            panel(l, first, rows, i / pieces * PANEL, sums, 0);
    }
}

/* out = x W^T + bias */
void drawloom_linear(linear_t *l) { share(&l->team, linear_part, l); }

/* --- layers ------------------------------------------------------------------------------- */

#define SHARE 32 /* rows that a thread takes at a time */

typedef struct {
    linear_t qkv, output, gate_up, down; /* what they read and write is filled in below */
    const void *input_norm, *post_norm;
} layer_t;

/* All that the layers of a step have in common. T tokens of `width` numbers. */
typedef struct {
    layer_t *layers;
    int64_t count, tokens, width;
    void *x, *residual, *normed, *wide, *narrow; /* x is the embedding, then the last layer's */
    const float *cos, *sin;
    const int64_t *positions, *slots;
    int64_t layer_stride; /* of keys, and of values */
    float eps;
    attention_t attention; /* of the first layer; q and out are [T, heads * depth] */
} layers_t;

typedef struct {
    team_t team;
    const layers_t *all;
    const layer_t *layer;
    int part; /* 0, 2: the norms; 1: rotation; 3: the gate */
    int first, half;
} rows_t;

INLINE void some_rows(const rows_t *r, int64_t from, int64_t count, const int half) {
    const layers_t *l = r->all;
    const attention_t *a = &l->attention;
    const int64_t width = l->width, depth = a->depth;
    if (r->part == 1) {
        const int64_t row = r->layer->qkv.outputs;
        const void *q = at(l->wide, from * row, half), *k = at(q, a->heads * depth, half);
        rope_store_(q, k, at(k, a->kv_heads * depth, half),
                    (void *)at(a->q, from * a->heads * depth, half), (void *)a->keys,
                    (void *)a->values, l->cos, l->sin, l->positions + from, l->slots + from,
                    count, a->heads, a->kv_heads, depth, row, row, row, a->head_stride,
                    a->slot_stride, half);
    } else if (r->part == 3) {
        const int64_t inner = r->layer->down.inputs * (half ? 2 : 1);
        silu_mul_(at(l->wide, 2 * from * inner, half), (void *)at(l->narrow, from * inner, half),
                  count, inner, half);
    } else {
        void *residual = (void *)at(l->residual, from * width, half);
        rms_norm_(at(l->x, from * width, half), r->first ? 0 : residual,
                  r->part ? r->layer->post_norm : r->layer->input_norm,
                  (void *)at(l->normed, from * width, half), residual, count, width, l->eps, half);
    }
}

static void rows_part(void *given) {
    rows_t *r = given;
    for (int64_t from; (from = take(&r->team) * SHARE) < r->all->tokens;) {
        int64_t count = r->all->tokens - from < SHARE ? r->all->tokens - from : SHARE;
        if (r->half)
            some_rows(r, from, count, 1);
        else
            some_rows(r, from, count, 0);
    }
}

static void row_by_row(layers_t *l, layer_t *layer, int part, int first) {
    rows_t r = {l->attention.team, l, layer, part, first, l->attention.half};
    if (l->tokens <= SHARE) r.team.threads = 1;
    share(&r.team, rows_part, &r);
}

static void multiplied(layers_t *l, linear_t *by, const void *x, void *out) {
    by->x = x, by->out = out, by->rows = l->tokens;
    by->half = l->attention.half, by->team = l->attention.team;
    if (by->rows * by->inputs * by->outputs < 1 << 18) by->team.threads = 1;
    drawloom_linear(by);
}

/* Layers of a decoder, one after the other; x and residual are of the last. */
void drawloom_layers(layers_t *l) {
    attention_t *a = &l->attention;
    for (int64_t i = 0; i < l->count; i++) {
        layer_t *layer = l->layers + i;
        row_by_row(l, layer, 0, i == 0);
        multiplied(l, &layer->qkv, l->normed, l->wide);
        row_by_row(l, layer, 1, 0);
        share(&a->team, attention_part, a);
        multiplied(l, &layer->output, a->out, l->x);
        row_by_row(l, layer, 2, 0);
        multiplied(l, &layer->gate_up, l->normed, l->wide);
        row_by_row(l, layer, 3, 0);
        multiplied(l, &layer->down, l->narrow, l->x);
        a->keys = at(a->keys, l->layer_stride, a->half);
        a->values = at(a->values, l->layer_stride, a->half);
    }
}
