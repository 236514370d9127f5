// A cloud with x, y and z in separate arrays, split into blocks of points that are close together, each with its
// bounding box.
//
// A box gives a lower bound of the distances to all of its points. Rounding is monotonic, and the bound is computed
// with the same operations as a distance. So the bound holds for the rounded distances too, and skipping a block is
// exact.
#pragma once
#include <vector>

#include "vector.h"

constexpr int64_t BLOCK = 64;  // points: 4 vectors of floats

struct Blocks {
    int64_t count = 0, blocks = 0, padded_blocks = 0;
    // Padding beyond the count is NaN, for which every comparison is false. Boxes beyond `blocks` are infinitely far
    // away.
    std::vector<T> x, y, z, box;
    std::vector<Int> index;

    // Load the points of one cloud: in the order of the cells of a coarse grid, with boxes, or in the order of the
    // caller, without boxes.
    void build(const T* points, int64_t number, bool spatial) {
        count = number;
        blocks = (count + BLOCK - 1) / BLOCK;
        padded_blocks = (blocks + WIDTH - 1) / WIDTH * WIDTH;
        const int64_t size = blocks * BLOCK;
        for (std::vector<T>* axis : {&x, &y, &z}) axis->assign(size, NOT_A_NUMBER);
        index.assign(size, NO_INDEX);
        if (spatial) {
            fill_by_cell(points);
            bound();
        } else {
            for (int64_t i = 0; i < count; i++) put(i, i, points);
        }
    }

    // Return lower bounds of the squared distances of a point q to `WIDTH` blocks, beginning with block b. Along each
    // axis the distance to an interval is max(low - q, q - high, 0).
    Vec bounds(int64_t b, const Vec (&q)[3]) const {
        Vec d[3];
        for (int a = 0; a < 3; a++) {
            const T *low = box.data() + 2 * a * padded_blocks + b, *high = low + padded_blocks;
            d[a] = larger(larger(load(low) - q[a], q[a] - load(high)), Vec{});
        }
        return squared(d[0], d[1], d[2]);
    }

    void all_bounds(const Vec (&q)[3], T* bound) const {
        for (int64_t b = 0; b < padded_blocks; b += WIDTH) store(bound + b, bounds(b, q));
    }

    // Call visit(b) for each block whose bound is more than `past` and at most `limit`.
    template <class Visit>
    void within(const T* bound, T past, T limit, const Visit& visit) const {
        for (int64_t b = 0; b < padded_blocks; b += WIDTH) {
            const Vec v = load(bound + b);
            each(bits((v > past) & (v <= limit)), [&](int64_t lane) {
                if (b + lane < blocks) visit(b + lane);  // real points can be at infinity, too, so compare the number
            });
        }
    }

    int64_t size(int64_t block) const { return block + 1 < blocks ? BLOCK : count - block * BLOCK; }

    // Return the squared distances of the points i, i + 1, ... to a point q.
    Vec distance(int64_t i, const Vec (&q)[3]) const {
        return squared(load(x.data() + i) - q[0], load(y.data() + i) - q[1], load(z.data() + i) - q[2]);
    }

  private:
    void put(int64_t slot, int64_t i, const T* points) {
        x[slot] = points[3 * i];
        y[slot] = points[3 * i + 1];
        z[slot] = points[3 * i + 2];
        index[slot] = static_cast<Int>(i);
    }

    // Sort the points by the cells of a grid over the cloud, along a Morton curve, on which neighbouring cells are
    // often close. A counting sort: it keeps the order of points within a cell, and takes two passes.
    void fill_by_cell(const T* points) {
        const int bits = count < 4096 ? 3 : count < 32768 ? 4 : 5;
        T low[3], scale[3];
        for (int a = 0; a < 3; a++) {
            T least = points[a], most = points[a];
            for (int64_t i = 1; i < count; i++) {
                least = points[3 * i + a] < least ? points[3 * i + a] : least;
                most = points[3 * i + a] > most ? points[3 * i + a] : most;
            }
            low[a] = least;
            // A flat or a very large cloud (a scale that is inf or NaN): all points are in cell 0 of this axis.
            const T wanted = static_cast<T>(1 << bits) / (most - least);
            scale[a] = wanted < INF ? wanted : 0;
        }
        // spread[v] has the bits of v at every third position, so that the cells of three axes can be interleaved by
        // `|`.
        uint32_t spread[32];
        for (uint32_t v = 0; v < 32; v++) {
            spread[v] = 0;
            for (int bit = 0; bit < bits; bit++) spread[v] |= (v >> bit & 1) << (3 * bit);
        }
        const int32_t last = (1 << bits) - 1;
        std::vector<int32_t> starts((1 << (3 * bits)) + 1, 0), cells(count);
        for (int64_t i = 0; i < count; i++) {
            uint32_t cell = 0;
            for (int a = 0; a < 3; a++) {
                const T place = (points[3 * i + a] - low[a]) * scale[a];
                // The largest coordinate is beyond the last cell. In a very large cloud inf * 0 is NaN, which goes to
                // 0.
                cell |= spread[place < last ? static_cast<int32_t>(place) : place >= last ? last : 0] << a;
            }
            cells[i] = static_cast<int32_t>(cell);
            starts[cell + 1]++;
        }
        for (size_t c = 1; c < starts.size(); c++) starts[c] += starts[c - 1];
        for (int64_t i = 0; i < count; i++) put(starts[cells[i]]++, i, points);
    }

    // Compute the boxes. The padding of the last block is NaN, which `smaller` and `larger` ignore as first argument.
    void bound() {
        box.assign(6 * padded_blocks, INF);  // low and high of x, of y, of z
        const T* axes[3] = {x.data(), y.data(), z.data()};
        for (int a = 0; a < 3; a++) {
            T *low = box.data() + 2 * a * padded_blocks, *high = low + padded_blocks;
            for (int64_t b = 0; b < blocks; b++) {
                Vec least = fill(INF), most = fill(-INF);
                for (int64_t i = 0; i < BLOCK; i += WIDTH) {
                    Vec v = load(axes[a] + b * BLOCK + i);
                    least = smaller(v, least);
                    most = larger(v, most);
                }
                low[b] = lowest_of(least);
                high[b] = highest_of(most);
            }
        }
    }
};
