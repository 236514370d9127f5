// The nearest point of another cloud, and the gradient of the squared distance to it.
#pragma once
#include "search.h"

// The state of a worker that needs none.
struct Nothing {
    explicit Nothing(const Blocks&) {}
};

// The nearest point of each lane so far. Ties go to the lowest index, because blocks are not in the order of the
// caller.
struct Best {
    Vec distance = fill(INF);
    Mask index = Mask{} + NO_INDEX;

    void add(Vec d, Mask i) {
        const Mask better = (d < distance) | ((d == distance) & (i < index));
        distance = better ? d : distance;
        index = better ? i : index;
    }
};

static void nearest_one(const Blocks& cloud, const T* query, Found& found, T* distance, int64_t* index) {
    const Vec q[3] = {fill(query[0]), fill(query[1]), fill(query[2])};
    T* bound = found.bound.data();
    cloud.all_bounds(q, bound);
    Vec low = fill(INF);
    for (int64_t b = 0; b < cloud.padded_blocks; b += WIDTH) low = smaller(load(bound + b), low);
    Best best;
    const auto look = [&](int64_t block) {
        for (int64_t i = block * BLOCK; i < (block + 1) * BLOCK; i += WIDTH) {
            best.add(cloud.distance(i, q), load(cloud.index.data() + i));
        }
    };
    // Look into the closest block first. Most others are then farther than the nearest point in it.
    const T closest = lowest_of(low);
    int64_t first = 0;
    while (bound[first] != closest) first++;
    look(first);
    cloud.within(bound, -1, lowest_of(best.distance), [&](int64_t b) {
        if (b != first) look(b);
    });
    // The lowest index among all lanes at the smallest distance.
    *distance = lowest_of(best.distance);
    Int lowest = NO_INDEX;
    for (int64_t l = 0; l < WIDTH; l++) {
        lowest = best.distance[l] == *distance && best.index[l] < lowest ? best.index[l] : lowest;
    }
    *index = lowest;
}

// For small clouds: compare a vector of queries with each point in turn. Points come in the order of their indices, so
// `<` gives ties to the lowest.
static void nearest_all(const Blocks& queries, const T* points, int64_t count, T* distance, int64_t* index) {
    for (int64_t i = 0; i < queries.count; i += WIDTH) {
        Vec low = fill(INF);
        Mask where{};
        for (int64_t j = 0; j < count; j++) {
            const Vec q[3] = {fill(points[3 * j]), fill(points[3 * j + 1]), fill(points[3 * j + 2])};
            const Vec d = queries.distance(i, q);
            const Mask better = d < low;
            low = better ? d : low;
            where = better ? Mask{} + static_cast<Int>(j) : where;
        }
        for (int64_t l = 0; l < WIDTH && i + l < queries.count; l++) {
            distance[i + l] = low[l];
            index[i + l] = where[l];
        }
    }
}

// Add the gradients of the squared distances from x to the y at the indices, times `grad`, to the gradients of x and y.
static void pull(const T* x, const T* y, const T* grad, const int64_t* index, int64_t count, T* grad_x, T* grad_y) {
    for (int64_t i = 0; i < count; i++) {
        for (int a = 0; a < 3; a++) {
            const T g = 2 * grad[i] * (x[3 * i + a] - y[3 * index[i] + a]);
            grad_x[3 * i + a] += g;
            grad_y[3 * index[i] + a] -= g;
        }
    }
}
