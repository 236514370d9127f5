// The k nearest points, and the points in a ball.
#pragma once
#include <algorithm>
#include <memory>

#include "blocks.h"
#include "team.h"

// The points that a query has found so far, and memory for the lower bounds of the blocks. A thread reuses it.
struct Found {
    std::vector<T> distance, bound;
    std::vector<Int> index, rank;
    int64_t count = 0;

    explicit Found(const Blocks& cloud)
        : distance((cloud.blocks + 1) * BLOCK),  // the last for what pack() and pad() write beyond the end
          bound(cloud.padded_blocks),
          index(distance.size()),
          rank(distance.size()) {}

    // Add the points of a block at distances up to `limit`.
    void add(const Blocks& cloud, int64_t block, const Vec (&q)[3], T limit) {
        for (int64_t i = block * BLOCK; i < (block + 1) * BLOCK; i += WIDTH) {
            const Vec d = cloud.distance(i, q);
            const uint32_t set = bits(d <= limit);
            pack(distance.data() + count, d, set);
            pack(index.data() + count, load(cloud.index.data() + i), set);
            count += __builtin_popcount(set);
        }
    }

    // Add the distances of all points of a block, without indices. They are NaN for padding.
    void add_distances(const Blocks& cloud, int64_t block, const Vec (&q)[3]) {
        for (int64_t i = block * BLOCK; i < (block + 1) * BLOCK; i += WIDTH, count += WIDTH) {
            store(distance.data() + count, cloud.distance(i, q));
        }
    }

    // Return a distance that at least k of the points found do not exceed, and usually not many more. A bisection,
    // which is exact in the sense that `high` always has at least k points below it, wherever it stops.
    T enough(int64_t k) {
        pad();
        Vec most{};
        for (int64_t i = 0; i < count; i += WIDTH) most = larger(load(distance.data() + i), most);  // not NaN
        T low = 0, high = highest_of(most);
        for (int step = 0; step < 16; step++) {
            const T limit = low + (high - low) / 2;
            Mask inside{};
            // True is -1 in every lane, so subtracting counts.
            for (int64_t i = 0; i < count; i += WIDTH) inside -= load(distance.data() + i) <= limit;
            int64_t within = 0;
            for (int64_t l = 0; l < WIDTH; l++) within += inside[l];
            (within < k ? low : high) = limit;
            if (within >= k && within <= k + k / 4) break;
        }
        return high;
    }

    // Drop the points beyond `limit`. Every point is written, and only the count depends on it: no branch to predict.
    void keep(T limit) {
        int64_t kept = 0;
        for (int64_t i = 0; i < count; i++) {
            distance[kept] = distance[i];
            index[kept] = index[i];
            kept += distance[i] <= limit;
        }
        count = kept;
    }

    // Write the k nearest points, nearest first, ties by index. It needs k <= count.
    void sorted(int64_t k, T* distances, int64_t* indices) {
        if (count > 2 * k + 32) keep(enough(k));
        if (count <= 256) return by_rank(k, distances, indices);
        std::vector<std::pair<T, Int>> pairs(count);
        for (int64_t i = 0; i < count; i++) pairs[i] = {distance[i], index[i]};
        std::partial_sort(pairs.begin(), pairs.begin() + k, pairs.end());
        for (int64_t i = 0; i < k; i++) {
            distances[i] = pairs[i].first;
            indices[i] = pairs[i].second;
        }
    }

  private:
    // The position of a point is the number of points before it. Without branches to predict, this is faster than a
    // sort of up to 256 points.
    void by_rank(int64_t k, T* distances, int64_t* indices) {
        pad();
        for (int64_t j = 0; j < count; j += WIDTH) {
            const Vec d = load(distance.data() + j);
            const Mask index_j = load(index.data() + j);
            Mask before{};
            for (int64_t i = 0; i < count; i++) {
                before -= (distance[i] < d) | ((distance[i] == d) & (index[i] < index_j));
            }
            store(rank.data() + j, before);
        }
        for (int64_t i = 0; i < count; i++) {
            if (rank[i] >= k) continue;
            distances[rank[i]] = distance[i];
            indices[rank[i]] = index[i];
        }
    }

    void pad() { std::fill_n(distance.begin() + count, WIDTH, NOT_A_NUMBER); }
};

static void nearest_k(const Blocks& cloud, const T* query, int64_t k, Found& found, T* distances, int64_t* indices) {
    const Vec q[3] = {fill(query[0]), fill(query[1]), fill(query[2])};
    T* bound = found.bound.data();
    cloud.all_bounds(q, bound);
    // Take the closest blocks until they have k points. The k-th distance among these points is an upper bound of the
    // k-th distance in the cloud. In the second pass only blocks within that limit are searched.
    found.count = 0;
    T done = -1;
    for (int64_t points = 0; points < k;) {
        Vec low = fill(INF);
        for (int64_t b = 0; b < cloud.padded_blocks; b += WIDTH) {
            const Vec v = load(bound + b);
            low = smaller(v > done ? v : low, low);
        }
        const T closest = lowest_of(low);
        cloud.within(bound, done, closest, [&](int64_t b) {
            found.add_distances(cloud, b, q);
            points += cloud.size(b);
        });
        done = closest;
    }
    const T limit = found.enough(k);
    found.count = 0;
    cloud.within(bound, -1, limit, [&](int64_t b) { found.add(cloud, b, q, limit); });
    found.sorted(k, distances, indices);
}

// The points are in the order of the caller, so the first k found have the lowest indices. The rest is filled with the
// first.
static void in_ball(const Blocks& cloud, const T* query, T squared_radius, int64_t k, int64_t* indices) {
    const Vec q[3] = {fill(query[0]), fill(query[1]), fill(query[2])};
    int64_t count = 0;
    for (int64_t i = 0; i < cloud.blocks * BLOCK && count < k; i += WIDTH) {
        each(bits(cloud.distance(i, q) < squared_radius), [&](int64_t lane) {
            if (count < k) indices[count++] = i + lane;
        });
    }
    std::fill(indices + count, indices + k, count ? indices[0] : 0);
}

constexpr int64_t CHUNK = 128;  // number of queries that a thread takes at a time

// Call answer(cloud, worker state, query number) for each query of each cloud.
template <class State, class Answer>
static int for_queries(const T* points, int64_t batch, int64_t count, int64_t queries, const int64_t* lengths,
                       bool spatial, Team team, const Answer& answer) {
    const std::unique_ptr<Blocks[]> clouds(new (std::nothrow) Blocks[batch]);
    bool done = clouds && team.run(batch, [&](int64_t b) {
        clouds[b].build(points + b * count * 3, lengths ? lengths[b] : count, spatial);
    });
    const int64_t chunks = (queries + CHUNK - 1) / CHUNK;
    done = done && team.run(batch * chunks, [&](int64_t task) {
        const int64_t b = task / chunks, first = task % chunks * CHUNK;
        State state(clouds[b]);
        const int64_t last = first + CHUNK < queries ? first + CHUNK : queries;
        for (int64_t m = first; m < last; m++) answer(clouds[b], state, b * queries + m);
    });
    return !done;
}
