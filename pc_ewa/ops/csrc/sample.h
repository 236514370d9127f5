// Farthest point sampling. Both ways keep the squared distance of each point to the nearest chosen one in `near`. It is
// -1 for padding and for points that must not be chosen: below any distance, so that it stays and never wins.
#pragma once
#include "blocks.h"
#include "team.h"

static std::vector<T> eligible(const Blocks& cloud, T skip) {
    std::vector<T> near(cloud.blocks * BLOCK, -1);
    for (size_t i = 0; i < near.size(); i++) {
        if (squared(cloud.x[i], cloud.y[i], cloud.z[i]) > skip) near[i] = INF;  // false for padding, which is NaN
    }
    return near;
}

// Update the distances of some points for the newly chosen point, and return the largest of each lane.
static inline Vec update(const Blocks& cloud, T* near, int64_t begin, int64_t end, const Vec (&q)[3]) {
    Vec top = fill(-1);
#pragma GCC unroll 4
    for (int64_t i = begin; i < end; i += WIDTH) {
        Vec d = smaller(cloud.distance(i, q), load(near + i));
        store(near + i, d);
        top = larger(d, top);
    }
    return top;
}

// For a small cloud: update every point at every step.
static void sample_all(const T* points, const Blocks& cloud, T* near, int64_t n, int64_t* chosen) {
    for (int64_t step = 1; step < n; step++) {
        const T* last = points + 3 * chosen[step - 1];
        const Vec q[3] = {fill(last[0]), fill(last[1]), fill(last[2])};
        const T highest = highest_of(update(cloud, near, 0, cloud.blocks * BLOCK, q));
        // Find the first point at the largest distance. If none may be chosen, all are at -1, and it is index 0.
        int64_t i = 0;
        uint32_t set;
        while (!(set = bits(load(near + i) == highest))) i += WIDTH;
        chosen[step] = i + __builtin_ctz(set);
    }
}

// For a large cloud: update only blocks with a point that can be closer to the last choice than to all before. That is
// exact: where the bound of a block is not below its largest distance, no minimum in it changes.
static void sample_blocks(const T* points, const Blocks& cloud, T* near, int64_t n, int64_t* chosen) {
    const int64_t blocks = cloud.padded_blocks;
    std::vector<T> most(blocks, -INF);  // the largest distance in each block; below any for blocks of padding
    for (int64_t i = 0; i < cloud.blocks * BLOCK; i++) {
        T& farthest = most[i / BLOCK];
        farthest = near[i] > farthest ? near[i] : farthest;
    }
    for (int64_t step = 1; step < n; step++) {
        const T* last = points + 3 * chosen[step - 1];
        const Vec q[3] = {fill(last[0]), fill(last[1]), fill(last[2])};
        Vec best = fill(-1);
        for (int64_t b0 = 0; b0 < blocks; b0 += WIDTH) {
            each(bits(cloud.bounds(b0, q) < load(most.data() + b0)), [&](int64_t lane) {
                const int64_t begin = (b0 + lane) * BLOCK;
                most[b0 + lane] = highest_of(update(cloud, near, begin, begin + BLOCK, q));
            });
            best = larger(load(most.data() + b0), best);
        }
        const T highest = highest_of(best);
        // Of all points at the largest distance find the lowest index in the order of the caller. It is 0 if none may
        // be chosen, because all are at -1 then.
        Int first = NO_INDEX;
        for (int64_t b0 = 0; b0 < blocks; b0 += WIDTH) {
            each(bits(load(most.data() + b0) == highest), [&](int64_t lane) {
                const int64_t begin = (b0 + lane) * BLOCK;
                for (int64_t i = begin; i < begin + BLOCK; i++) {
                    Int candidate = near[i] == highest ? cloud.index[i] : first;
                    first = candidate < first ? candidate : first;
                }
            });
        }
        chosen[step] = first;
    }
}

static void farthest_points(const T* points, int64_t count, int64_t n, int64_t start, T skip, int64_t* chosen) {
    // Sorting the points into blocks pays off only if many blocks are skipped.
    const bool large = count >= 2048 && n >= 32;
    Blocks cloud;
    cloud.build(points, count, large);
    std::vector<T> near = eligible(cloud, skip);
    chosen[0] = start;
    (large ? sample_blocks : sample_all)(points, cloud, near.data(), n, chosen);
}
