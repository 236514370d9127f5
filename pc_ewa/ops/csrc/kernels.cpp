// Point-cloud operations for CPUs, called through plain pointers, so that no header of torch or Python is needed.
//
// Arguments are those of pc_ewa/ops/reference.py with the sizes of the tensors. lengths and start may be null. All
// functions return 0, or 1 if memory ran out.
#include "nearest.h"
#include "patch.h"
#include "sample.h"

extern "C" {

int farthest_point_sample(const T* points, int64_t batch, int64_t count, int64_t n, const int64_t* start,
                          const int64_t* lengths, double skip, int64_t* chosen, Parallel parallel, int64_t threads) {
    return !Team{parallel, threads}.run(batch, [&](int64_t b) {
        farthest_points(points + b * count * 3, lengths ? lengths[b] : count, n, start ? start[b] : 0,
                        static_cast<T>(skip), chosen + b * n);
    });
}

int knn(const T* queries, const T* points, int64_t batch, int64_t number, int64_t count, int64_t k,
        const int64_t* lengths, T* distances, int64_t* indices, Parallel parallel, int64_t threads) {
    return for_queries<Found>(points, batch, count, number, lengths, true, {parallel, threads},
                              [&](const Blocks& cloud, Found& found, int64_t q) {
                                  nearest_k(cloud, queries + 3 * q, k, found, distances + q * k, indices + q * k);
                              });
}

int ball_query(const T* queries, const T* points, int64_t batch, int64_t number, int64_t count, double squared_radius,
               int64_t k, const int64_t* lengths, int64_t* indices, Parallel parallel, int64_t threads) {
    return for_queries<Nothing>(points, batch, count, number, lengths, false, {parallel, threads},
                                [&](const Blocks& cloud, Nothing&, int64_t q) {
                                    in_ball(cloud, queries + 3 * q, static_cast<T>(squared_radius), k, indices + q * k);
                                });
}

// From x to y only. The caller has set distances and indices to 0, which they stay for rows beyond x_lengths.
int nearest(const T* x, const T* y, int64_t batch, int64_t x_count, int64_t y_count, const int64_t* x_lengths,
            const int64_t* y_lengths, T* distances, int64_t* indices, Parallel parallel, int64_t threads) {
    // From 256 points of y on, sorting them into blocks costs less than the distances that it saves.
    if (y_count >= 256) {
        return for_queries<Found>(y, batch, y_count, x_count, y_lengths, true, {parallel, threads},
                                  [&](const Blocks& cloud, Found& found, int64_t q) {
                                      if (x_lengths && q % x_count >= x_lengths[q / x_count]) return;
                                      nearest_one(cloud, x + 3 * q, found, distances + q, indices + q);
                                  });
    }
    const int64_t together = 16;  // number of small clouds for which a thread reuses its memory
    return !Team{parallel, threads}.run((batch + together - 1) / together, [&](int64_t task) {
        Blocks queries;
        for (int64_t b = task * together; b < batch && b < (task + 1) * together; b++) {
            queries.build(x + b * x_count * 3, x_lengths ? x_lengths[b] : x_count, false);
            nearest_all(queries, y + b * y_count * 3, y_lengths ? y_lengths[b] : y_count, distances + b * x_count,
                        indices + b * x_count);
        }
    });
}

// The caller has set the gradients of x and y to 0.
int nearest_backward(const T* grad_to_y, const T* grad_to_x, const T* x, const T* y, const int64_t* x_index,
                     const int64_t* y_index, int64_t batch, int64_t x_count, int64_t y_count, T* grad_x, T* grad_y,
                     Parallel parallel, int64_t threads) {
    // A cloud is never split over threads: they would add to the same gradients, and the order of sums would vary.
    const int64_t together = 1 + 4096 / (x_count + y_count);
    return !Team{parallel, threads}.run((batch + together - 1) / together, [&](int64_t task) {
        for (int64_t b = task * together; b < batch && b < (task + 1) * together; b++) {
            const int64_t i = b * x_count, j = b * y_count;
            pull(x + 3 * i, y + 3 * j, grad_to_y + i, x_index + i, x_count, grad_x + 3 * i, grad_y + 3 * j);
            pull(y + 3 * j, x + 3 * i, grad_to_x + j, y_index + j, y_count, grad_y + 3 * j, grad_x + 3 * i);
        }
    });
}

// Mean and variance of x + shift; `parts` is room for the sums of blocks, see patch.h.
int norm_statistics(const T* x, const T* shift, int64_t patches, int64_t size, int64_t channels, T* parts, T* mean,
                    T* variance, Parallel parallel, int64_t threads) {
    const std::vector<T> zeros(channels);
    return !statistics({x, shift, patches, size, channels}, zeros.data(), parts, mean, variance, {parallel, threads});
}

// relu(batch norm(x + shift)) with the given statistics.
int norm_relu(const T* x, const T* shift, const T* weight, const T* bias, const T* mean, const T* variance,
              int64_t patches, int64_t size, int64_t channels, double eps, T* y, Parallel parallel, int64_t threads) {
    const std::vector<T> zeros(channels);
    return !normalize({x, shift, patches, size, channels}, zeros.data(),
                      Affine(weight, bias, mean, variance, eps, channels), y, {parallel, threads});
}

// grad_x may be grad.
int norm_relu_backward(const T* grad, const T* x, const T* shift, const T* weight, const T* bias, const T* mean,
                       const T* variance, int64_t patches, int64_t size, int64_t channels, double eps, T* parts,
                       T* grad_x, T* grad_shift, T* grad_weight, T* grad_bias, Parallel parallel, int64_t threads) {
    const Rows rows{x, shift, patches, size, channels};
    const std::vector<T> zeros(channels);
    return !normalize_backward(rows, zeros.data(), Affine(weight, bias, mean, variance, eps, channels), mean, grad,
                               parts, grad_x, grad_shift, grad_weight, grad_bias, {parallel, threads});
}

int largest(const T* x, int64_t patches, int64_t size, int64_t channels, T* values, Int* winners, Parallel parallel,
            int64_t threads) {
    return !largest(Rows{x, nullptr, patches, size, channels}, values, winners, Team{parallel, threads});
}

int largest_backward(const T* grad, const Int* winners, int64_t patches, int64_t size, int64_t channels, T* grad_x,
                     Parallel parallel, int64_t threads) {
    return !largest_backward(Rows{nullptr, nullptr, patches, size, channels}, grad, winners, grad_x,
                             Team{parallel, threads});
}

}  // extern "C"
