// How threads divide the work of one linear layer, and the memory they share for it.
#pragma once

#include <sched.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>

namespace pagoda {

constexpr int kMaxThreads = 256;

// Memory that grows and is used again; one per calling thread.
class Workspace {
   public:
    ~Workspace() { std::free(memory_); }
    uint32_t* words(int64_t count) {
        if (count > size_) {
            std::free(memory_);
            size_ = (count + 1023) / 1024 * 1024;
            memory_ = static_cast<uint32_t*>(std::aligned_alloc(64, size_ * sizeof(uint32_t)));
        }
        return memory_;
    }

   private:
    uint32_t* memory_ = nullptr;
    int64_t size_ = 0;
};

// Numbers [0, count) handed out to threads: each takes its own share, a contiguous one, and then what others left.
class Tasks {
   public:
    Tasks(int64_t count, int num_threads) : num_threads_(num_threads) {
        for (int i = 0; i < num_threads; i++) {
            shares_[i].next.store(count * i / num_threads, std::memory_order_relaxed);
            shares_[i].end = count * (i + 1) / num_threads;
        }
    }

    template <typename Do>
    void run(int thread, Do&& task) {
        for (int i = 0; i < num_threads_; i++) {
            Share& share = shares_[(thread + i) % num_threads_];
            for (;;) {
                const int64_t number = share.next.fetch_add(1, std::memory_order_relaxed);
                if (number >= share.end) break;
                task(number);
            }
        }
    }

   private:
    struct alignas(64) Share {
        std::atomic<int64_t> next;
        int64_t end;
    };
    int num_threads_;
    Share shares_[kMaxThreads];
};

// Whoever comes first packs; all wait until every block is packed, which may be before the last thread is awake.
class Packing {
   public:
    explicit Packing(int64_t count) : count_(count) {}

    template <typename Do>
    void run(Do&& pack) {
        for (;;) {
            const int64_t number = next_.fetch_add(1, std::memory_order_relaxed);
            if (number >= count_) break;
            pack(number);
            done_.fetch_add(1, std::memory_order_release);
        }
        for (int spins = 0; done_.load(std::memory_order_acquire) < count_; spins++) {
            if (spins < kSpins)
                relax();
            else
                sched_yield();
        }
    }

   private:
    static constexpr int kSpins = 4000;
    static void relax() {
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#endif
    }
    int64_t count_;
    alignas(64) std::atomic<int64_t> next_{0};
    alignas(64) std::atomic<int64_t> done_{0};
};

}  // namespace pagoda
