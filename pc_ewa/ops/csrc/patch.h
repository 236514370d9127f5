// Layers of the patch encoder that are limited by memory bandwidth, in fewer passes over memory than plain torch.
#pragma once
#include <cmath>
#include <vector>

#include "team.h"
#include "vector.h"

// Rows x (patches * size, channels) plus a shift of each patch (patches, channels), which may be null.
struct Rows {
    const T* x;
    const T* shift;
    int64_t patches, size, channels;

    // Patches per block: about 128 rows, which stay in the cache of a core. It does not depend on the number of
    // threads, so that sums over blocks do not either.
    int64_t together() const { return size < 128 ? 128 / size : 1; }
    int64_t blocks() const { return (patches + together() - 1) / together(); }

    // Call visit(row, its patch, shift of the patch) for the rows of a block. Returns the number of rows.
    template <class Visit>
    int64_t each(int64_t block, const T* zeros, const Visit& visit) const {
        const int64_t first = block * together(), after = first + together() < patches ? first + together() : patches;
        for (int64_t p = first; p < after; p++) {
            const T* moved = shift ? shift + p * channels : zeros;
            for (int64_t r = p * size; r < (p + 1) * size; r++) visit(r, p, moved);
        }
        return (after - first) * size;
    }
};

// Compute the mean and the biased variance of each channel over all rows. `parts` (blocks, 2, channels) gets the mean
// and the sum of squared deviations of each block. They are combined in the order of blocks, whichever thread made
// them.
//
// Two passes over each block, deviations from its mean: E[x²] - E[x]² would cancel for means far from 0. The second
// pass reads the block from the cache.
static inline bool statistics(const Rows& rows, const T* zeros, T* parts, T* mean, T* variance, const Team& team) {
    const int64_t channels = rows.channels, blocks = rows.blocks();
    const bool done = team.run(blocks, [&](int64_t block) {
        T* __restrict__ middle = parts + 2 * block * channels;
        T* __restrict__ squares = middle + channels;
        for (int64_t c = 0; c < channels; c++) middle[c] = squares[c] = 0;
        const int64_t number = rows.each(block, zeros, [&](int64_t r, int64_t, const T* __restrict__ moved) {
            const T* __restrict__ row = rows.x + r * channels;
            for (int64_t c = 0; c < channels; c++) middle[c] += row[c] + moved[c];
        });
        for (int64_t c = 0; c < channels; c++) middle[c] /= static_cast<T>(number);
        rows.each(block, zeros, [&](int64_t r, int64_t, const T* __restrict__ moved) {
            const T* __restrict__ row = rows.x + r * channels;
            for (int64_t c = 0; c < channels; c++) {
                const T off = row[c] + moved[c] - middle[c];
                squares[c] += off * off;
            }
        });
    });
    if (!done) return false;
    // Combine the blocks (Chan et al.): squared deviations from the total mean are those from the mean of the block,
    // plus number of rows times the squared difference of the means.
    std::vector<double> sum(channels), spread(channels);
    const double total = static_cast<double>(rows.patches * rows.size);
    const auto weigh = [&](int64_t block) {
        const int64_t left = rows.patches - block * rows.together();
        return static_cast<double>((left < rows.together() ? left : rows.together()) * rows.size);
    };
    for (int64_t block = 0; block < blocks; block++) {
        const T* middle = parts + 2 * block * channels;
        for (int64_t c = 0; c < channels; c++) sum[c] += weigh(block) * static_cast<double>(middle[c]);
    }
    for (int64_t c = 0; c < channels; c++) sum[c] /= total;
    for (int64_t block = 0; block < blocks; block++) {
        const T* middle = parts + 2 * block * channels;
        for (int64_t c = 0; c < channels; c++) {
            const double off = static_cast<double>(middle[c]) - sum[c];
            spread[c] += static_cast<double>(middle[channels + c]) + weigh(block) * off * off;
        }
    }
    for (int64_t c = 0; c < channels; c++) {
        mean[c] = static_cast<T>(sum[c]);
        variance[c] = static_cast<T>(spread[c] / total);
    }
    return true;
}

// Batch norm as one product and one sum of each value: x * scale + offset.
struct Affine {
    std::vector<T> inverse, scale, offset;

    Affine(const T* weight, const T* bias, const T* mean, const T* variance, double eps, int64_t channels)
        : inverse(channels), scale(channels), offset(channels) {
        for (int64_t c = 0; c < channels; c++) {
            inverse[c] = static_cast<T>(1 / std::sqrt(static_cast<double>(variance[c]) + eps));
            scale[c] = weight[c] * inverse[c];
            offset[c] = bias[c] - mean[c] * scale[c];
        }
    }
};

static inline bool normalize(const Rows& rows, const T* zeros, const Affine& affine, T* y, const Team& team) {
    const int64_t channels = rows.channels;
    return team.run(rows.blocks(), [&](int64_t block) {
        const T* __restrict__ scale = affine.scale.data();
        const T* __restrict__ offset = affine.offset.data();
        rows.each(block, zeros, [&](int64_t r, int64_t, const T* __restrict__ moved) {
            const T* __restrict__ row = rows.x + r * channels;
            T* __restrict__ out = y + r * channels;
            for (int64_t c = 0; c < channels; c++) {
                const T value = (row[c] + moved[c]) * scale[c] + offset[c];
                out[c] = value <= 0 ? 0 : value;  // NaN stays
            }
        });
    });
}

// Compute the gradients of relu(norm(x + shift)). grad_shift may be null. `parts` is memory as for `statistics`.
static inline bool normalize_backward(const Rows& rows, const T* zeros, const Affine& affine, const T* __restrict__ mean,
                                      const T* grad, T* parts, T* grad_x, T* grad_shift, T* grad_weight, T* grad_bias,
                                      const Team& team) {
    const int64_t channels = rows.channels, blocks = rows.blocks();
    const T* __restrict__ scale = affine.scale.data();
    const T* __restrict__ offset = affine.offset.data();
    const T* __restrict__ inverse = affine.inverse.data();
    // First pass: per channel the sum of the gradients that pass the ReLU, and of their products with the deviation.
    // The output of the forward is computed again from x, which is cheaper than reading it from memory.
    bool done = team.run(blocks, [&](int64_t block) {
        T* __restrict__ plain = parts + 2 * block * channels;
        T* __restrict__ product = plain + channels;
        for (int64_t c = 0; c < channels; c++) plain[c] = product[c] = 0;
        rows.each(block, zeros, [&](int64_t r, int64_t, const T* __restrict__ moved) {
            const T* __restrict__ row = rows.x + r * channels;
            const T* __restrict__ from = grad + r * channels;
            for (int64_t c = 0; c < channels; c++) {
                const T value = row[c] + moved[c], given = from[c];
                const T passed = value * scale[c] + offset[c] <= 0 ? 0 : given;
                plain[c] += passed;
                product[c] += passed * (value - mean[c]);
            }
        });
    });
    if (!done) return false;
    std::vector<double> sum(channels), products(channels);
    for (int64_t block = 0; block < blocks; block++) {
        const T* plain = parts + 2 * block * channels;
        for (int64_t c = 0; c < channels; c++) {
            sum[c] += static_cast<double>(plain[c]);
            products[c] += static_cast<double>(plain[channels + c]);
        }
    }
    // Second pass, the gradient of batch norm:
    // grad_x = scale * (passed - mean of passed - normalised * mean of (passed * normalised))
    const double total = static_cast<double>(rows.patches * rows.size);
    std::vector<T> constant(channels), slope(channels);
    for (int64_t c = 0; c < channels; c++) {
        const double inv = static_cast<double>(inverse[c]);
        grad_bias[c] = static_cast<T>(sum[c]);
        grad_weight[c] = static_cast<T>(products[c] * inv);
        constant[c] = static_cast<T>(sum[c] / total);
        slope[c] = static_cast<T>(products[c] * inv * inv / total);
    }
    const T* __restrict__ level = constant.data();
    const T* __restrict__ tilt = slope.data();
    return team.run(blocks, [&](int64_t block) {
        int64_t at = -1;
        std::vector<T> result(channels);  // a row of grad_x, which may be the row of grad that is read
        T* __restrict__ out = result.data();
        rows.each(block, zeros, [&](int64_t r, int64_t patch, const T* __restrict__ moved) {
            const T* __restrict__ row = rows.x + r * channels;
            const T* __restrict__ from = grad + r * channels;
            for (int64_t c = 0; c < channels; c++) {
                const T value = row[c] + moved[c], given = from[c];
                const T passed = value * scale[c] + offset[c] <= 0 ? 0 : given;
                out[c] = scale[c] * (passed - level[c] - (value - mean[c]) * tilt[c]);
            }
            std::memcpy(grad_x + r * channels, out, channels * sizeof(T));
            if (grad_shift) {
                T* __restrict__ whole = grad_shift + patch * channels;
                if (patch != at) {
                    for (int64_t c = 0; c < channels; c++) whole[c] = 0;
                    at = patch;
                }
                for (int64_t c = 0; c < channels; c++) whole[c] += out[c];
            }
        });
    });
}

// Find the largest value of each channel over the rows of each patch, and its row: the first of equal ones, or the
// first NaN, as torch does. Selections instead of branches, so that the loops over channels are vectorised.
static inline bool largest(const Rows& rows, T* values, Int* winners, const Team& team) {
    const int64_t channels = rows.channels;
    return team.run(rows.blocks(), [&](int64_t block) {
        rows.each(block, nullptr, [&](int64_t r, int64_t patch, const T*) {
            const T* __restrict__ row = rows.x + r * channels;
            T* __restrict__ best = values + patch * channels;
            Int* __restrict__ winner = winners + patch * channels;
            const Int k = static_cast<Int>(r - patch * rows.size);
            if (k == 0) {
                for (int64_t c = 0; c < channels; c++) {
                    best[c] = row[c];
                    winner[c] = 0;
                }
                return;
            }
            for (int64_t c = 0; c < channels; c++) {
                const bool better = (row[c] > best[c]) | ((row[c] != row[c]) & (best[c] == best[c]));
                best[c] = better ? row[c] : best[c];
                winner[c] = better ? k : winner[c];
            }
        });
    });
}

static inline bool largest_backward(const Rows& rows, const T* grad, const Int* winners, T* grad_x, const Team& team) {
    const int64_t channels = rows.channels;
    return team.run(rows.blocks(), [&](int64_t block) {
        rows.each(block, nullptr, [&](int64_t r, int64_t patch, const T*) {
            const T* __restrict__ from = grad + patch * channels;
            const Int* __restrict__ winner = winners + patch * channels;
            T* __restrict__ out = grad_x + r * channels;
            const Int k = static_cast<Int>(r - patch * rows.size);
            for (int64_t c = 0; c < channels; c++) {
                const T given = from[c];
                out[c] = winner[c] == k ? given : 0;
            }
        });
    });
}
