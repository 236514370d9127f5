// Threads of the OpenMP runtime that torch has loaded. A second thread pool would compete with it for the cores.
#pragma once
#include <atomic>
#include <cstdint>
#include <new>

// GOMP_parallel, the function that `#pragma omp parallel` compiles to. GNU's, LLVM's and Intel's runtimes have it.
typedef void (*Parallel)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

struct Team {
    Parallel parallel;
    int64_t threads;

    // Call work(0) ... work(tasks - 1), each once, on the next free thread. Returns false if memory ran out.
    template <class Work>
    bool run(int64_t tasks, const Work& work) const {
        struct Job {
            const Work& work;
            int64_t tasks;
            std::atomic<int64_t> next{0};
            std::atomic<bool> failed{false};
            Job(const Work& w, int64_t t) : work(w), tasks(t) {}
            static void body(void* data) {
                Job& job = *static_cast<Job*>(data);
                // Caught here, because an exception must not leave a function that a C runtime has called.
                try {
                    for (int64_t task; (task = job.next++) < job.tasks;) job.work(task);
                } catch (const std::bad_alloc&) {
                    job.failed = true;
                }
            }
        } job(work, tasks);
        int64_t hands = threads < tasks ? threads : tasks;
        if (parallel && hands > 1) {
            parallel(&Job::body, &job, static_cast<unsigned>(hands), 0);
        } else {
            Job::body(&job);
        }
        return !job.failed;
    }
};
