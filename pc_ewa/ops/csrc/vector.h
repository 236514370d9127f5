// Vectors in an extension of GCC and Clang, as wide as a register: AVX-512, AVX2, SSE or NEON, as -march allows.
#pragma once
#include <cstdint>
#include <cstring>
#include <limits>
#ifdef __SSE2__
#include <immintrin.h>
#endif

// The calling convention for wide vectors depends on -march. No vector is passed to another file, so it does not
// matter.
#pragma GCC diagnostic ignored "-Wpsabi"

// The type of a coordinate, float or double, and an integer of the same width for indices and results of comparisons.
typedef SCALAR T;
template <class S>
struct AsWide {
    typedef int32_t type;
};
template <>
struct AsWide<double> {
    typedef int64_t type;
};
typedef AsWide<T>::type Int;

// Compilers split vectors that are wider than a register into single lanes.
#if defined(__AVX512F__) && defined(__AVX512DQ__)
constexpr int REGISTER = 64;
#elif defined(__AVX2__)
constexpr int REGISTER = 32;
#else
constexpr int REGISTER = 16;
#endif
typedef T Vec __attribute__((vector_size(REGISTER)));
typedef Int Mask __attribute__((vector_size(REGISTER)));
constexpr int64_t WIDTH = REGISTER / sizeof(T);
constexpr T INF = std::numeric_limits<T>::infinity(), NOT_A_NUMBER = std::numeric_limits<T>::quiet_NaN();
constexpr Int NO_INDEX = std::numeric_limits<Int>::max();

static inline Vec load(const T* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
static inline Mask load(const Int* p) {
    Mask v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
static inline void store(T* p, Vec v) { std::memcpy(p, &v, sizeof v); }
static inline void store(Int* p, Mask v) { std::memcpy(p, &v, sizeof v); }
static inline Vec fill(T value) { return value - Vec{}; }
// If one argument is NaN, these return the second argument, because the comparison is false.
static inline Vec smaller(Vec a, Vec b) { return a < b ? a : b; }
static inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// The squared distance, added in the order of the reference. Another order would round differently, and select others.
template <class V>
static inline V squared(V dx, V dy, V dz) {
    return (dx * dx + dy * dy) + dz * dz;
}

// Return a bit for each lane that is true.
static inline uint32_t bits(Mask m) {
    constexpr bool single = sizeof(T) == 4;
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    return single ? _mm512_movepi32_mask((__m512i)m) : _mm512_movepi64_mask((__m512i)m);
#elif defined(__AVX2__)
    return single ? _mm256_movemask_ps((__m256)m) : _mm256_movemask_pd((__m256d)m);
#elif defined(__SSE2__)
    return single ? _mm_movemask_ps((__m128)m) : _mm_movemask_pd((__m128d)m);
#else
    (void)single;
    uint32_t set = 0;
    for (int64_t l = 0; l < WIDTH; l++) set |= static_cast<uint32_t>(m[l] & 1) << l;
    return set;
#endif
}

// Call visit(lane) for each bit. `set & (set - 1)` clears the lowest bit.
template <class Visit>
static inline void each(uint32_t set, const Visit& visit) {
    for (; set; set &= set - 1) visit(__builtin_ctz(set));
}

// Write the lanes whose bit is set, one after the other. Memory up to the length of a vector may be overwritten.
template <class S, class V>
static inline void pack(S* out, V v, uint32_t set) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    const __m512i packed = sizeof(S) == 4 ? _mm512_maskz_compress_epi32(static_cast<__mmask16>(set), (__m512i)v)
                                          : _mm512_maskz_compress_epi64(static_cast<__mmask8>(set), (__m512i)v);
    store(out, (V)packed);
#else
    each(set, [&](int64_t lane) { *out++ = v[lane]; });
#endif
}

// Return the largest (or smallest) of all lanes, by halving them until one is left.
template <int LANES, class V, class Pick>
static inline T across(V v, Pick pick) {
    if constexpr (LANES == 1) {
        return v[0];
    } else {
        typedef T Half __attribute__((vector_size(LANES / 2 * sizeof(T))));
        Half half[2];
        std::memcpy(half, &v, sizeof v);
        return across<LANES / 2>(pick(half[0], half[1]), pick);
    }
}
static inline T highest_of(Vec v) {
    return across<WIDTH>(v, [](auto a, auto b) { return a > b ? a : b; });
}
static inline T lowest_of(Vec v) {
    return across<WIDTH>(v, [](auto a, auto b) { return a < b ? a : b; });
}
