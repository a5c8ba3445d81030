/* Weighted sums of blocks of weights, and their changes from a base, in one pass: each number is
 * read once, summed in float64, and rounded once.
 *
 * NumPy makes such a sum from a dozen passes over arrays, which is slower than memory; this file is
 * the same arithmetic, operation by operation, without the passes. `sums.py` and `changes.py` have
 * it in NumPy, for machines where this was not compiled, and the tests hold the two to the same
 * bits. So: no fused multiply-add (-ffp-contract=off), no -ffast-math, and terms are added in the
 * order given.
 */

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>
#define EXPORT
#endif

#if defined(__x86_64__) && defined(__GLIBC__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif
#define INLINE static inline __attribute__((always_inline))

enum { TILE = 512 }; /* float64 sums of a tile stay in the first cache */

typedef enum { BF16, F16, F32 } dtype;

static const size_t SIZES[] = {2, 2, 4};

/* Tensors in a file need not be aligned. */
typedef uint16_t __attribute__((aligned(1), may_alias)) loose_uint16;
typedef float __attribute__((aligned(1), may_alias)) loose_float;

INLINE float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* ── from the stored types to float64: exact ────────────────────────────────────────────────── */

INLINE double from_bf16(uint16_t bits) { return float_of((uint32_t)bits << 16); }

INLINE double from_f16(uint16_t bits) {
    /* The exponent's bias is 15 and not 127: the product sets it right, subnormals included. */
    uint32_t magnitude = (uint32_t)(bits & 0x7FFF) << 13;
    float value = float_of(magnitude) * 0x1p112f;
    uint32_t special = (bits & 0x7C00) == 0x7C00 ? 0x7F800000u : 0;
    return float_of(bits_of(value) | special | (uint32_t)(bits & 0x8000) << 16);
}

/* ── from float64 to the stored types: rounded once, to nearest, ties to even ───────────────── */

/* The float32 of `value`, moved off the middle of two narrower numbers whose last bit is `unit` when
 * rounding to float32 has put it there: what is rounded further then goes the right way. */
INLINE uint32_t off_the_middle(double value, uint32_t unit) {
    float single = (float)value;
    uint32_t bits = bits_of(single);
    uint32_t middle = (bits & (unit - 1)) == unit / 2;
    uint32_t beyond = middle & (fabs(value) > fabs((double)single));
    uint32_t short_of = middle & (fabs(value) < fabs((double)single));
    return bits + beyond - short_of;
}

INLINE uint16_t to_bf16(double value) {
    uint32_t bits = off_the_middle(value, 0x10000);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

INLINE uint16_t to_f16(double value) {
    uint32_t bits = off_the_middle(value, 0x2000);
    uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
    uint32_t normal = (magnitude + 0xFFF + (magnitude >> 13 & 1) - 0x38000000) >> 13;
    /* Below 2^-14 the steps are of one size. Straight from float64: adding 1.5 · 2^28 leaves, as the
     * low bits, the multiple of 2^-24 that is nearest, ties to even. */
    double steps = fabs(value) + 0x1.8p28;
    uint64_t low;
    memcpy(&low, &steps, sizeof low);
    uint32_t subnormal = (uint32_t)low & 0x7FF;
    uint32_t rounded = fabs(value) < 0x1p-14 ? subnormal : normal;
    /* From 65520 on, the nearest is beyond the largest. */
    return (uint16_t)(sign | (fabs(value) < 65520.0 ? rounded : 0x7C00));
}

/* ── one tile ───────────────────────────────────────────────────────────────────────────────── */

#define ADD_TILE(NAME, TYPE, VALUE)                                                             \
    INLINE void add_##NAME(double *sums, const void *from, size_t n, double weight, int first,  \
                           int plain) {                                                         \
        const TYPE *block = from;                                                               \
        if (first && plain)                                                                     \
            for (size_t i = 0; i < n; i++) sums[i] = VALUE(block[i]);                           \
        else if (first)                                                                         \
            for (size_t i = 0; i < n; i++) sums[i] = VALUE(block[i]) * weight;                  \
        else if (plain)                                                                         \
            for (size_t i = 0; i < n; i++) sums[i] += VALUE(block[i]);                          \
        else                                                                                    \
            for (size_t i = 0; i < n; i++) sums[i] += VALUE(block[i]) * weight;                 \
    }

ADD_TILE(bf16, loose_uint16, from_bf16)
ADD_TILE(f16, loose_uint16, from_f16)
ADD_TILE(f32, loose_float, (double))

/* Returns whether every result is finite. From its LIMIT on, a number is rounded to infinity. */
#define STORE_TILE(NAME, TYPE, ROUND, LIMIT)                                                    \
    INLINE int store_##NAME(const double *sums, void *to, size_t n) {                           \
        TYPE *rounded = to;                                                                     \
        int bad = 0;                                                                            \
        for (size_t i = 0; i < n; i++) rounded[i] = ROUND(sums[i]);                             \
        for (size_t i = 0; i < n; i++) bad |= !(fabs(sums[i]) < LIMIT);                         \
        return !bad;                                                                            \
    }

STORE_TILE(small_bf16, loose_uint16, to_bf16, 0x1.FFp127)
STORE_TILE(f16, loose_uint16, to_f16, 65520.0)
STORE_TILE(f32, loose_float, (float), 0x1.FFFFFFp127)

/* Numbers from 2^-126 on are rounded by their float64 bits, of which 7 of the fraction are left;
 * what float32 then makes of them is exact. Tiles with lesser ones take the longer way. */
INLINE int store_bf16(const double *sums, void *to, size_t n) {
    loose_uint16 *rounded = to;
    int bad = 0, small = 0;
    for (size_t i = 0; i < n; i++) {
        double size = fabs(sums[i]);
        bad |= !(size < 0x1.FFp127);
        small |= (size < 0x1p-126) & (size != 0);
    }
    if (small) return store_small_bf16(sums, to, n);
    for (size_t i = 0; i < n; i++) {
        uint64_t bits;
        memcpy(&bits, &sums[i], sizeof bits);
        bits += 0xFFFFFFFFFFFu + (bits >> 45 & 1);
        bits &= ~0x1FFFFFFFFFFFu;
        double value;
        memcpy(&value, &bits, sizeof value);
        rounded[i] = (uint16_t)(bits_of((float)value) >> 16);
    }
    return !bad;
}

INLINE int store_tile(int to, const double *sums, void *out, size_t start, size_t n) {
    char *target = (char *)out + start * SIZES[to];
    if (to == BF16) return store_bf16(sums, target, n);
    if (to == F16) return store_f16(sums, target, n);
    return store_f32(sums, target, n);
}

/* Divided by a number of blocks, rounded once as a division is, and faster: the quotient by the
 * reciprocal, and then what is missing, which the halves of the quotient give exactly (Markstein
 * 1990, with products of halves in place of fused ones). Not for numbers near the least there are. */
INLINE void divide_tile(double *values, size_t n, size_t k) {
    double divisor = (double)k, reciprocal = 1.0 / divisor;
    if ((k & (k - 1)) == 0) {
        for (size_t i = 0; i < n; i++) values[i] *= reciprocal;
        return;
    }
    if (k >> 20) {
        for (size_t i = 0; i < n; i++) values[i] /= divisor;
        return;
    }
    for (size_t i = 0; i < n; i++) {
        double value = values[i], quotient = value * reciprocal, high;
        uint64_t bits;
        memcpy(&bits, &quotient, sizeof bits);
        bits &= 0xFFFFFFFFF8000000u;
        memcpy(&high, &bits, sizeof high);
        double rest = (value - high * divisor) - (quotient - high) * divisor;
        values[i] = rest == 0 ? quotient : quotient + rest * reciprocal; /* -0.0 stays what it is */
    }
}

/* Σ weights[j] · blocks[j][i] for every i < n; the mean of the blocks where `weights` is NULL.
 * Returns 1, or 0 when a result is not finite. */
EXPORT FOR_EACH_PROCESSOR
int stockpot_mix(int from, int to, const void *const *blocks, const double *weights, size_t k,
                 size_t n, void *out) {
    double sums[TILE];
    int finite = 1;
    for (size_t start = 0; start < n; start += TILE) {
        size_t length = n - start < TILE ? n - start : TILE;
        for (size_t j = 0; j < k; j++) {
            const char *block = (const char *)blocks[j] + start * SIZES[from];
            double weight = weights ? weights[j] : 1.0;
            if (from == BF16) add_bf16(sums, block, length, weight, j == 0, !weights);
            else if (from == F16) add_f16(sums, block, length, weight, j == 0, !weights);
            else add_f32(sums, block, length, weight, j == 0, !weights);
        }
        if (!weights) divide_tile(sums, length, k);
        finite &= store_tile(to, sums, out, start, length);
    }
    return finite;
}

/* base[i] · share + change[i] for every i < n, rounded once. Returns as stockpot_mix does. */
EXPORT FOR_EACH_PROCESSOR
int stockpot_add(int from, int to, const void *base, double share, const double *change, size_t n,
                 void *out) {
    double sums[TILE];
    int finite = 1, plain = share == 1.0;
    for (size_t start = 0; start < n; start += TILE) {
        size_t length = n - start < TILE ? n - start : TILE;
        const char *block = (const char *)base + start * SIZES[from];
        if (from == BF16) add_bf16(sums, block, length, share, 1, plain);
        else if (from == F16) add_f16(sums, block, length, share, 1, plain);
        else add_f32(sums, block, length, share, 1, plain);
        for (size_t i = 0; i < length; i++) sums[i] += change[start + i];
        finite &= store_tile(to, sums, out, start, length);
    }
    return finite;
}

/* ── changes: blocks minus those of a base ──────────────────────────────────────────────────── */

INLINE void widen_tile(int from, double *to, const void *block, size_t n) {
    if (from == BF16) add_bf16(to, block, n, 1.0, 1, 1);
    else if (from == F16) add_f16(to, block, n, 1.0, 1, 1);
    else add_f32(to, block, n, 1.0, 1, 1);
}

INLINE void change_tile(int from, int from_base, const void *value, const void *base, size_t start,
                        size_t n, double *change, double *scratch) {
    widen_tile(from, change, (const char *)value + start * SIZES[from], n);
    widen_tile(from_base, scratch, (const char *)base + start * SIZES[from_base], n);
    for (size_t i = 0; i < n; i++) change[i] -= scratch[i];
}

INLINE int is_finite_tile(const double *values, size_t n) {
    int bad = 0;
    for (size_t i = 0; i < n; i++) bad |= !(fabs(values[i]) <= DBL_MAX);
    return !bad;
}

/* Which changes are kept: those of a size from `least` to `most` for which `kept`, if it is not
 * NULL, is not 0. They are divided by `shares`, or all by `share` without, and times `factor`. */
typedef struct {
    double least, most, share, factor;
    const uint8_t *kept;
    const double *shares;
} trim;

/* What is kept of `change`, whose first is number `start`, and 0 elsewhere. */
INLINE void trim_tile(const double *change, trim by, size_t start, size_t n, double *to) {
    if (by.shares)
        for (size_t i = 0; i < n; i++) to[i] = change[i] / by.shares[start + i];
    else if (by.share != 1.0)
        for (size_t i = 0; i < n; i++) to[i] = change[i] / by.share;
    else
        memcpy(to, change, n * sizeof *to);
    if (by.least > 0 || by.most <= DBL_MAX)
        for (size_t i = 0; i < n; i++) {
            double size = fabs(change[i]);
            to[i] = (size >= by.least) & (size <= by.most) ? to[i] : 0.0;
        }
    if (by.kept)
        for (size_t i = 0; i < n; i++) to[i] = by.kept[start + i] ? to[i] : 0.0;
    if (by.factor != 1.0)
        for (size_t i = 0; i < n; i++) to[i] *= by.factor;
}

/* `trim` of value − base. Returns 1, or 0 when a change is not finite, kept or not. */
EXPORT FOR_EACH_PROCESSOR
int stockpot_trim(int from, int from_base, const void *value, const void *base, size_t n,
                    const double *numbers, const uint8_t *kept, const double *shares, double *out) {
    double change[TILE], scratch[TILE];
    trim by = {numbers[0], numbers[1], numbers[2], numbers[3], kept, shares};
    int finite = 1;
    for (size_t start = 0; start < n; start += TILE) {
        size_t length = n - start < TILE ? n - start : TILE;
        change_tile(from, from_base, value, base, start, length, change, scratch);
        finite &= is_finite_tile(change, length);
        trim_tile(change, by, start, length, out + start);
    }
    return finite;
}

/* The variance of each element over `k` terms, which lie TILE apart. */
INLINE void variance_tile(const double *terms, size_t k, size_t n, double *out) {
    double mean[TILE];
    for (size_t i = 0; i < n; i++) mean[i] = out[i] = 0.0;
    for (size_t j = 0; j < k; j++)
        for (size_t i = 0; i < n; i++) mean[i] += terms[j * TILE + i];
    divide_tile(mean, n, k);
    for (size_t j = 0; j < k; j++)
        for (size_t i = 0; i < n; i++) {
            double apart = terms[j * TILE + i] - mean[i];
            out[i] += apart * apart;
        }
    divide_tile(out, n, k);
}

/* The sum of those terms that have the sign of the sum of all, divided by the sum of their weights
 * if that is asked for, and times their weights (`weigh`) if they are not yet. Where terms cancel
 * out, `tie` is the sign; returns 0 when that is asked for and `tie` is 0. */
INLINE int elect_tile(const double *terms, const double *weights, int weigh, size_t k, size_t n,
                      int tie, int normalise, double *merged) {
    double sign[TILE], share[TILE];
    int undecided = 0;
    for (size_t i = 0; i < n; i++) sign[i] = share[i] = 0.0;
    for (size_t j = 0; j < k; j++)
        for (size_t i = 0; i < n; i++) {
            sign[i] += terms[j * TILE + i];
            share[i] += fabs(terms[j * TILE + i]);
        }
    for (size_t i = 0; i < n; i++) undecided |= (sign[i] == 0) & (share[i] != 0);
    if (undecided && !tie) return 0;
    for (size_t i = 0; i < n; i++)
        sign[i] = sign[i] > 0 ? 1.0 : sign[i] < 0 ? -1.0 : (double)tie;
    for (size_t i = 0; i < n; i++) merged[i] = share[i] = 0.0;
    for (size_t j = 0; j < k; j++) {
        const double *term = terms + j * TILE;
        double weight = weights[j], factor = weigh ? weight : 1.0;
        for (size_t i = 0; i < n; i++) {
            int agrees = term[i] * sign[i] > 0; /* the product is exact */
            merged[i] += agrees ? term[i] * factor : 0.0;
            share[i] += agrees ? weight : 0.0;
        }
    }
    if (normalise)
        for (size_t i = 0; i < n; i++) merged[i] /= share[i] == 0 ? 1.0 : share[i];
    return 1;
}

/* How terms are merged: with an election (`elect`; see elect_tile), or else their sum divided by
 * `divisor`; of those elements alone whose variance is `least` or more, if `select`; times `scale`. */
typedef struct {
    double divisor, scale, least;
    int elect, tie, normalise, weigh, select;
} merging;

/* blocks[k] + what is made of the trimmed changes of the k blocks before it, rounded once.
 *
 * `numbers` are least, most, share, factor and weight of each; `kept` and `shares` have an address
 * for each, which may be NULL. Returns 1; 0 when a change or a result is not finite; 2 when terms
 * cancel out and there is no `tie`, or -1 without memory, and then `out` is not complete. */
EXPORT FOR_EACH_PROCESSOR
int stockpot_merge(const int *from, const void *const *blocks, size_t k, size_t n,
                   const double *numbers, const uint8_t *const *kept, const double *const *shares,
                   const merging *how, int to, void *out) {
    double origin[TILE], change[TILE], merged[TILE];
    double *terms = malloc((k * TILE + k) * sizeof *terms), *weights = terms + k * TILE;
    int finite = 1, decided = 1;
    if (!terms) return -1;
    for (size_t j = 0; j < k; j++) weights[j] = numbers[5 * j + 4];
    for (size_t start = 0; start < n; start += TILE) {
        size_t length = n - start < TILE ? n - start : TILE;
        widen_tile(from[k], origin, (const char *)blocks[k] + start * SIZES[from[k]], length);
        for (size_t j = 0; j < k; j++) {
            const double *own = numbers + 5 * j;
            trim by = {own[0], own[1], own[2], own[3], kept[j], shares[j]};
            widen_tile(from[j], change, (const char *)blocks[j] + start * SIZES[from[j]], length);
            for (size_t i = 0; i < length; i++) change[i] -= origin[i];
            finite &= is_finite_tile(change, length);
            trim_tile(change, by, start, length, terms + j * TILE);
        }
        if (how->select) {
            variance_tile(terms, k, length, change);
            for (size_t j = 0; j < k; j++)
                for (size_t i = 0; i < length; i++)
                    terms[j * TILE + i] = change[i] >= how->least ? terms[j * TILE + i] : 0.0;
        }
        if (how->elect)
            decided &= elect_tile(terms, weights, how->weigh, k, length, how->tie, how->normalise, merged);
        else {
            memcpy(merged, terms, length * sizeof *merged);
            for (size_t j = 1; j < k; j++)
                for (size_t i = 0; i < length; i++) merged[i] += terms[j * TILE + i];
            if (how->divisor != 1.0)
                for (size_t i = 0; i < length; i++) merged[i] /= how->divisor;
        }
        if (!decided) break;
        for (size_t i = 0; i < length; i++) merged[i] = origin[i] + merged[i] * how->scale;
        finite &= store_tile(to, merged, out, start, length);
    }
    free(terms);
    return decided ? finite : 2;
}

/* Changes of `k` blocks from blocks[k], TILE apart; what is not finite counts as no change. */
INLINE void finite_changes(const int *from, const void *const *blocks, size_t k, size_t start,
                           size_t n, double *terms, double *scratch) {
    for (size_t j = 0; j < k; j++) {
        double *term = terms + j * TILE;
        change_tile(from[j], from[k], blocks[j], blocks[k], start, n, term, scratch);
        for (size_t i = 0; i < n; i++) term[i] = fabs(term[i]) <= DBL_MAX ? term[i] : 0.0;
    }
}

/* The variances of the changes of `k` blocks from blocks[k]. Returns whether there was memory. */
EXPORT FOR_EACH_PROCESSOR
int stockpot_variances(const int *from, const void *const *blocks, size_t k, size_t n, double *out) {
    double scratch[TILE], *terms = malloc(k * TILE * sizeof *terms);
    for (size_t start = 0; terms && start < n; start += TILE) {
        size_t length = n - start < TILE ? n - start : TILE;
        finite_changes(from, blocks, k, start, length, terms, scratch);
        variance_tile(terms, k, length, out + start);
    }
    free(terms);
    return terms != NULL;
}

/* The squares of the changes of those elements whose variance is `least` or more, close together: of
 * each of the `k` blocks in a row of `n` of `out`. Returns how many there are; n + 1 without memory. */
EXPORT FOR_EACH_PROCESSOR
size_t stockpot_squares(const int *from, const void *const *blocks, size_t k, size_t n, double least,
                        double *out) {
    double scratch[TILE], variance[TILE], *terms = malloc(k * TILE * sizeof *terms);
    size_t found = 0;
    if (!terms) return n + 1;
    for (size_t start = 0; start < n; start += TILE) {
        size_t length = n - start < TILE ? n - start : TILE, next = found;
        finite_changes(from, blocks, k, start, length, terms, scratch);
        variance_tile(terms, k, length, variance);
        for (size_t j = 0; j < k; j++) {
            double *to = out + j * n;
            next = found;
            for (size_t i = 0; i < length; i++) {
                double change = terms[j * TILE + i];
                to[next] = change * change;
                next += variance[i] >= least;
            }
        }
        found = next;
    }
    free(terms);
    return found;
}

/* The bits of the sizes of changes, which are in the order of the sizes; 0 for what is not finite. */
INLINE void size_tile(int from, int from_base, const void *value, const void *base, size_t start,
                      size_t n, uint64_t *bits, double *scratch) {
    double change[TILE];
    change_tile(from, from_base, value, base, start, n, change, scratch);
    for (size_t i = 0; i < n; i++) {
        double size = fabs(change[i]);
        size = size <= DBL_MAX ? size : 0.0;
        memcpy(&bits[i], &size, sizeof size);
    }
}

/* Of bits that begin with `prefix` above `shift` + 16: how many there are of each value of the 16
 * bits above `shift`. Two tables take turns, since neighbours are often alike. */
INLINE void count_tile(const uint64_t *bits, size_t n, int shift, uint64_t prefix, int64_t *counts) {
    for (size_t i = 0; i < n; i++)
        if (shift == 48 || bits[i] >> (shift + 16) == prefix)
            counts[(i & 1) << 16 | (bits[i] >> shift & 0xFFFF)]++;
}

/* Those of bits that begin with `prefix` above `shift`; returns how many there are. */
INLINE size_t pick_tile(const uint64_t *bits, size_t n, int shift, uint64_t prefix, uint64_t *to) {
    size_t found = 0;
    for (size_t i = 0; i < n; i++) {
        to[found] = bits[i];
        found += shift == 64 || bits[i] >> shift == prefix;
    }
    return found;
}

/* See count_tile: of the sizes of changes. */
EXPORT FOR_EACH_PROCESSOR
void stockpot_count_sizes(int from, int from_base, const void *value, const void *base, size_t n,
                          int shift, uint64_t prefix, int64_t *counts) {
    double scratch[TILE];
    uint64_t bits[TILE];
    for (size_t start = 0; start < n; start += TILE) {
        size_t length = n - start < TILE ? n - start : TILE;
        size_tile(from, from_base, value, base, start, length, bits, scratch);
        count_tile(bits, length, shift, prefix, counts);
    }
}

/* See pick_tile: of the sizes of changes. */
EXPORT FOR_EACH_PROCESSOR
size_t stockpot_sizes(int from, int from_base, const void *value, const void *base, size_t n,
                      int shift, uint64_t prefix, uint64_t *out) {
    double scratch[TILE];
    uint64_t bits[TILE];
    size_t found = 0;
    for (size_t start = 0; start < n; start += TILE) {
        size_t length = n - start < TILE ? n - start : TILE;
        size_tile(from, from_base, value, base, start, length, bits, scratch);
        found += pick_tile(bits, length, shift, prefix, out + found);
    }
    return found;
}

/* See count_tile and pick_tile: of numbers from 0 on. */
EXPORT void stockpot_count(const uint64_t *bits, size_t n, int shift, uint64_t prefix, int64_t *counts) {
    count_tile(bits, n, shift, prefix, counts);
}

EXPORT size_t stockpot_pick(const uint64_t *bits, size_t n, int shift, uint64_t prefix, uint64_t *to) {
    return pick_tile(bits, n, shift, prefix, to);
}

enum { LANES = 8 };

/* The sum of a tile, in the order that `changes.l1_norms` states. */
INLINE double sum_of_tile(const double *values) {
    double lane[LANES] = {0};
    for (size_t i = 0; i < TILE; i += LANES)
        for (size_t l = 0; l < LANES; l++) lane[l] += values[i + l];
    return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

/* The sums of the sizes of all changes, and of those that are kept; see trim_tile. What is not
 * finite counts as 0. */
EXPORT FOR_EACH_PROCESSOR
void stockpot_l1_norms(int from, int from_base, const void *value, const void *base, size_t n,
                       double least, double most, const uint8_t *kept, double *out) {
    double size[TILE], scratch[TILE];
    out[0] = out[1] = 0.0;
    for (size_t start = 0; start < n; start += TILE) {
        size_t length = n - start < TILE ? n - start : TILE;
        change_tile(from, from_base, value, base, start, length, size, scratch);
        for (size_t i = 0; i < length; i++) size[i] = fabs(size[i]);
        for (size_t i = 0; i < length; i++) size[i] = size[i] <= DBL_MAX ? size[i] : 0.0;
        for (size_t i = length; i < TILE; i++) size[i] = 0.0;
        out[0] += sum_of_tile(size);
        for (size_t i = 0; i < length; i++)
            size[i] = (size[i] >= least) & (size[i] <= most) ? size[i] : 0.0;
        if (kept)
            for (size_t i = 0; i < length; i++) size[i] = kept[start + i] ? size[i] : 0.0;
        out[1] += sum_of_tile(size);
    }
}

/* Ranks of the sizes of changes in rows, 0 for the least; equal ones in the order of the row.
 *
 * The sizes are put into twice as many bins of one breadth as there are, and those that share a bin
 * are put in order one by one. Where there are too many of those, a radix sort by the upper halves of
 * the bits, which stand before the places in the row, and then by all bits, does it: bytes in which
 * all are alike are passed over. */
INLINE void sort_by_bytes(uint64_t **items, uint64_t **others, size_t width) {
    size_t at[4][256] = {{0}};
    for (size_t i = 0; i < width; i++)
        for (int byte = 0; byte < 4; byte++) at[byte][(*items)[i] >> (32 + 8 * byte) & 0xFF]++;
    for (int byte = 0; byte < 4; byte++) {
        uint64_t *from = *items, *to = *others;
        size_t *next = at[byte], before = 0;
        int shift = 32 + 8 * byte;
        if (next[from[0] >> shift & 0xFF] == width) continue;
        for (int digit = 0; digit < 256; digit++) {
            size_t count = next[digit];
            next[digit] = before;
            before += count;
        }
        for (size_t i = 0; i < width; i++) to[next[from[i] >> shift & 0xFF]++] = from[i];
        *items = to;
        *others = from;
    }
}

/* Returns 0 when too many are out of order. */
INLINE int sort_one_by_one(uint32_t *places, uint64_t *keys, size_t width) {
    size_t moves = 0;
    for (size_t i = 1; i < width; i++) {
        uint64_t key = keys[i];
        uint32_t place = places[i];
        size_t to = i;
        if (keys[i - 1] <= key) continue;
        for (; to > 0 && keys[to - 1] > key; to--) {
            keys[to] = keys[to - 1];
            places[to] = places[to - 1];
        }
        keys[to] = key;
        places[to] = place;
        moves += i - to;
        if (moves > 8 * width) return 0;
    }
    return 1;
}

/* Memory for a row of ranks. */
typedef struct {
    uint64_t *keys, *sorted, *others;
    uint32_t *bins, *places, *next;
} row;

INLINE void order_row(row of, size_t width) {
    uint64_t bits = 0;
    double most;
    for (size_t i = 0; i < width; i++) bits = of.keys[i] > bits ? of.keys[i] : bits;
    memcpy(&most, &bits, sizeof most);
    double scale = (double)(2 * width - 1) / most;
    if (!(scale <= DBL_MAX)) scale = 0.0; /* all are alike, or hardly larger than 0 */
    for (size_t i = 0; i < width; i++) {
        double size;
        memcpy(&size, of.keys + i, sizeof size);
        of.bins[i] = (uint32_t)(int32_t)(size * scale);
    }
    memset(of.next, 0, 2 * width * sizeof *of.next);
    for (size_t i = 0; i < width; i++) of.next[of.bins[i]]++;
    uint32_t before = 0;
    for (size_t bin = 0; bin < 2 * width; bin++) {
        uint32_t count = of.next[bin];
        of.next[bin] = before;
        before += count;
    }
    for (size_t i = 0; i < width; i++) {
        uint32_t to = of.next[of.bins[i]]++;
        of.sorted[to] = of.keys[i];
        of.places[to] = (uint32_t)i;
    }
    if (sort_one_by_one(of.places, of.sorted, width)) return;
    uint64_t *items = of.sorted, *others = of.others;
    for (size_t i = 0; i < width; i++) items[i] = of.keys[i] << 32 | i;
    sort_by_bytes(&items, &others, width);
    for (size_t i = 0; i < width; i++) {
        uint32_t place = (uint32_t)items[i];
        items[i] = (of.keys[place] & 0xFFFFFFFF00000000u) | place;
    }
    sort_by_bytes(&items, &others, width);
    for (size_t i = 0; i < width; i++) of.places[i] = (uint32_t)items[i];
}

/* For each change the one of `values` that its rank in its row of `width` has. Returns 0 when there
 * is no memory for it. */
EXPORT FOR_EACH_PROCESSOR
int stockpot_by_rank(int from, int from_base, const void *value, const void *base, size_t n,
                     size_t width, const double *values, double *out) {
    double scratch[TILE];
    if (width > INT32_MAX / 2) return 0;
    uint64_t *memory = malloc(5 * width * sizeof *memory); /* two numbers in the room of one */
    uint32_t *narrow = (uint32_t *)(memory + 3 * width);
    row of = {memory, memory + width, memory + 2 * width, narrow, narrow + width, narrow + 2 * width};
    for (size_t first = 0; memory && first < n; first += width) {
        for (size_t start = 0; start < width; start += TILE)
            size_tile(from, from_base, value, base, first + start,
                      width - start < TILE ? width - start : TILE, of.keys + start, scratch);
        order_row(of, width);
        for (size_t i = 0; i < width; i++) out[first + of.places[i]] = values[i];
    }
    free(memory);
    return memory != NULL;
}

enum { PRODUCTS = 4 };

/* Inner products of tiles, four at a time: each is summed in the order of sum_of_tile, where an
 * addition waits for the one before. */
typedef double __attribute__((vector_size(LANES * sizeof(double)), aligned(8), may_alias)) lanes;

INLINE double sum_of_lanes(lanes of) {
    return ((of[0] + of[1]) + (of[2] + of[3])) + ((of[4] + of[5]) + (of[6] + of[7]));
}

INLINE void add_products(const double *const *x, const double *const *y, double *const *to) {
    lanes first = {0}, second = {0}, third = {0}, fourth = {0};
    for (size_t i = 0; i < TILE; i += LANES) {
        first += *(const lanes *)(x[0] + i) * *(const lanes *)(y[0] + i);
        second += *(const lanes *)(x[1] + i) * *(const lanes *)(y[1] + i);
        third += *(const lanes *)(x[2] + i) * *(const lanes *)(y[2] + i);
        fourth += *(const lanes *)(x[3] + i) * *(const lanes *)(y[3] + i);
    }
    *to[0] += sum_of_lanes(first);
    *to[1] += sum_of_lanes(second);
    *to[2] += sum_of_lanes(third);
    *to[3] += sum_of_lanes(fourth);
}

/* Σ values[i]·values[j] of `k` blocks, or of what they are beyond `origin`, which may be NULL: the
 * k·k sums go into `out`, which is scratch for k tiles too: k·(k + TILE) numbers. */
EXPORT FOR_EACH_PROCESSOR
void stockpot_gram(const int *from, const void *const *blocks, size_t k, int from_origin,
                   const void *origin, size_t n, double *out) {
    double scratch[TILE], unused = 0.0, *tiles = out + k * k;
    for (size_t i = 0; i < k * k; i++) out[i] = 0.0;
    for (size_t start = 0; start < n; start += TILE) {
        size_t length = n - start < TILE ? n - start : TILE;
        if (origin) {
            const char *at = (const char *)origin + start * SIZES[from_origin];
            widen_tile(from_origin, scratch, at, length);
        }
        for (size_t j = 0; j < k; j++) {
            double *tile = tiles + j * TILE;
            widen_tile(from[j], tile, (const char *)blocks[j] + start * SIZES[from[j]], length);
            if (origin)
                for (size_t i = 0; i < length; i++) tile[i] -= scratch[i];
            for (size_t i = length; i < TILE; i++) tile[i] = 0.0;
        }
        const double *x[PRODUCTS], *y[PRODUCTS];
        double *to[PRODUCTS];
        size_t held = 0;
        for (size_t a = 0; a < k; a++)
            for (size_t b = a; b < k; b++) {
                x[held] = tiles + a * TILE, y[held] = tiles + b * TILE, to[held] = out + a * k + b;
                int last = a == k - 1;
                for (held++; last && held < PRODUCTS; held++)
                    x[held] = x[0], y[held] = y[0], to[held] = &unused;
                if (held == PRODUCTS) add_products(x, y, to), held = 0;
            }
    }
    for (size_t a = 0; a < k; a++)
        for (size_t b = 0; b < a; b++) out[a * k + b] = out[b * k + a];
}

/* ── numbers at random that depend on their place alone ─────────────────────────────────────── */

#ifdef __SIZEOF_INT128__
INLINE uint64_t product(uint64_t a, uint64_t b, uint64_t *high) {
    unsigned __int128 whole = (unsigned __int128)a * b;
    *high = (uint64_t)(whole >> 64);
    return (uint64_t)whole;
}

/* The keys of the rounds of Philox4x64-10 (Salmon et al. 2011). */
typedef struct {
    uint64_t first[10], second[10];
} schedule;

INLINE schedule schedule_of(uint64_t key0, uint64_t key1) {
    schedule keys;
    for (int round = 0; round < 10; round++) {
        keys.first[round] = key0 + round * 0x9E3779B97F4A7C15u;
        keys.second[round] = key1 + round * 0xBB67AE8584CAA73Bu;
    }
    return keys;
}

/* The words of a counter, as NumPy seeds and steps it; the lower half of each is the first 32-bit
 * number in memory. */
INLINE void philox(uint64_t counter, const schedule *keys, uint64_t words[4]) {
    uint64_t a = counter + 1, b = a == 0, c = 0, d = 0;
    for (int round = 0; round < 10; round++) {
        uint64_t high0, high1;
        uint64_t low0 = product(0xD2E7470EE14C6C93u, a, &high0);
        uint64_t low1 = product(0xCA5A826395121157u, c, &high1);
        a = high1 ^ b ^ keys->first[round];
        b = low1;
        c = high0 ^ d ^ keys->second[round];
        d = low0;
    }
    words[0] = a, words[1] = b, words[2] = c, words[3] = d;
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    for (int i = 0; i < 4; i++) words[i] = words[i] << 32 | words[i] >> 32;
#endif
}

/* For each of the items `start` to `start` + n, whether its number of 32 bits is below 2^32 times
 * `share`, or times its own one of `each`, rounded. The number is the item-th half of the stream of
 * words, lower halves first. */
EXPORT FOR_EACH_PROCESSOR
void stockpot_kept(uint64_t key0, uint64_t key1, uint64_t start, size_t n, double share,
                   const double *each, uint8_t *out) {
    double below = rint(share * 0x1p32);
    int every = below >= 0x1p32;
    uint32_t least = below > 0 && !every ? (uint32_t)below : 0;
    uint64_t words[TILE / 2 + 8];
    schedule keys = schedule_of(key0, key1);
    for (size_t first = 0; first < n; first += TILE) {
        size_t length = n - first < TILE ? n - first : TILE;
        uint64_t item = start + first, skip = item % 8;
        for (size_t block = 0; block * 8 < skip + length; block++)
            philox(item / 8 + block, &keys, words + 4 * block);
        uint32_t numbers[TILE];
        memcpy(numbers, (const char *)words + skip * sizeof *numbers, length * sizeof *numbers);
        uint8_t *to = out + first;
        if (each)
            for (size_t i = 0; i < length; i++) to[i] = numbers[i] < rint(each[first + i] * 0x1p32);
        else
            for (size_t i = 0; i < length; i++) to[i] = (numbers[i] < least) | every;
    }
}
#endif

/* ── several blocks, centred on the first, in float32 ───────────────────────────────────────── */

#define WIDEN_SINGLE(NAME, TYPE, VALUE)                                                         \
    INLINE void single_##NAME(float *to, const void *from, size_t n) {                          \
        const TYPE *block = from;                                                               \
        for (size_t i = 0; i < n; i++) to[i] = (float)VALUE(block[i]);                          \
    }

WIDEN_SINGLE(bf16, loose_uint16, from_bf16)
WIDEN_SINGLE(f16, loose_uint16, from_f16)
WIDEN_SINGLE(f32, loose_float, )

INLINE void single_tile(int from, float *to, const void *block, size_t start, size_t n) {
    const char *at = (const char *)block + start * SIZES[from];
    if (from == BF16) single_bf16(to, at, n);
    else if (from == F16) single_f16(to, at, n);
    else single_f32(to, at, n);
}

enum { SINGLES = 32, SPAN = 2048 };

#define CENTRED(NAME, TYPE, VALUE)                                                              \
    INLINE void add_centred_##NAME(float *sum, const void *from, const float *first, size_t n,  \
                                   float weight) {                                              \
        const TYPE *block = from;                                                               \
        for (size_t i = 0; i < n; i++) sum[i] += ((float)VALUE(block[i]) - first[i]) * weight;  \
    }                                                                                           \
    INLINE void dot_centred_##NAME(float *lane, const void *from, const float *first,           \
                                   const float *along) {                                        \
        const TYPE *block = from;                                                               \
        for (size_t i = 0; i < SPAN; i += SINGLES)                                              \
            for (size_t l = 0; l < SINGLES; l++)                                                \
                lane[l] += ((float)VALUE(block[i + l]) - first[i + l]) * along[i + l];          \
    }

CENTRED(bf16, loose_uint16, from_bf16)
CENTRED(f16, loose_uint16, from_f16)
CENTRED(f32, loose_float, )

/* blocks[0] · total + Σ weights[j] · (blocks[j] − blocks[0]) over j > 0, those of weight 0 left out,
 * in float32 and in this order. */
EXPORT FOR_EACH_PROCESSOR
void stockpot_mix_centred(const int *from, const void *const *blocks, const float *weights,
                          size_t k, float total, size_t n, float *out) {
    float first[SPAN], sum[SPAN];
    for (size_t start = 0; start < n; start += SPAN) {
        size_t length = n - start < SPAN ? n - start : SPAN;
        single_tile(from[0], first, blocks[0], start, length);
        for (size_t i = 0; i < length; i++) sum[i] = 0.0f;
        for (size_t j = 1; j < k; j++) {
            const char *at = (const char *)blocks[j] + start * SIZES[from[j]];
            if (weights[j] == 0.0f) continue;
            if (from[j] == BF16) add_centred_bf16(sum, at, first, length, weights[j]);
            else if (from[j] == F16) add_centred_f16(sum, at, first, length, weights[j]);
            else add_centred_f32(sum, at, first, length, weights[j]);
        }
        for (size_t i = 0; i < length; i++) out[start + i] = sum[i] + first[i] * total;
    }
}

/* ⟨vector, blocks[0]⟩, then ⟨vector, blocks[j] − blocks[0]⟩: products in float32, summed in it over
 * 64 of each of 32 lanes, and in float64 beyond. */
EXPORT FOR_EACH_PROCESSOR
void stockpot_dot_centred(const int *from, const void *const *blocks, size_t k, const float *vector,
                          size_t n, double *out) {
    float first[SPAN], other[SPAN], along[SPAN], zeros[SPAN] = {0};
    for (size_t j = 0; j < k; j++) out[j] = 0.0;
    for (size_t start = 0; start < n; start += SPAN) {
        size_t length = n - start < SPAN ? n - start : SPAN;
        single_tile(from[0], first, blocks[0], start, length);
        memcpy(along, vector + start, length * sizeof *along);
        for (size_t i = length; i < SPAN; i++) first[i] = other[i] = along[i] = 0.0f;
        for (size_t j = 0; j < k; j++) {
            const char *at = (const char *)blocks[j] + start * SIZES[from[j]];
            float lane[SINGLES] = {0};
            double wide[SINGLES];
            if (j == 0) dot_centred_f32(lane, first, zeros, along);
            else if (length < SPAN) {
                single_tile(from[j], other, blocks[j], start, length);
                dot_centred_f32(lane, other, first, along);
            } else if (from[j] == BF16) dot_centred_bf16(lane, at, first, along);
            else if (from[j] == F16) dot_centred_f16(lane, at, first, along);
            else dot_centred_f32(lane, at, first, along);
            for (size_t l = 0; l < SINGLES; l++) wide[l] = lane[l];
            for (size_t apart = SINGLES / 2; apart > 0; apart /= 2)
                for (size_t l = 0; l < apart; l++) wide[l] = wide[2 * l] + wide[2 * l + 1];
            out[j] += wide[0];
        }
    }
}

/* A file that is cut short while it is mapped ends a process by SIGBUS. While a guard is set, the
 * page that is gone reads as zeros instead: whoever reads looks afterwards whether the file is still
 * what it was. Any other fault goes the way it went before. */
#ifndef _WIN32 /* a file that is mapped cannot be cut short there */
static struct sigaction without_guard;

static void on_bus(int number, siginfo_t *info, void *context) {
    (void)context;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    void *at = (void *)((uintptr_t)info->si_addr & ~(page - 1));
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    if (info->si_code == BUS_ADRERR &&
        mmap(at, page, PROT_READ | PROT_WRITE, flags, -1, 0) != MAP_FAILED)
        return;
    sigaction(number, &without_guard, NULL);
}

/* Set the guard, or take it away; whether that went well. Calls must not overlap. */
int stockpot_guard(int on) {
    struct sigaction guard = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO | SA_NODEFER};
    if (!on) return sigaction(SIGBUS, &without_guard, NULL) == 0;
    sigemptyset(&guard.sa_mask);
    return sigaction(SIGBUS, &guard, &without_guard) == 0;
}
#endif
