// What is fetched from memory while something else is computed: the tile of keys and values that is needed next.
//
// A core has room for few requests that are under way, and what memory gives for them depends on their order. Where
// neighbouring pages are read one after the other, from their beginnings to their ends, the processor itself reads further
// ahead; that was worth a third where memory was fast. Pages from all over memory are better read in turns.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "vec.h"

namespace pagoda {

// A list of lines, made before the computation, so that asking for one costs next to nothing.
class Ahead {
    using Line = const char*;

  public:
    // Pieces of memory of one size, which are read in turns.
    struct Group {
        Line pieces[4];
        int64_t num_pieces, num_bytes;
    };

    void add(Group group) {
        bool are_neighbours = true;
        for (int64_t i = 1; i < group.num_pieces; i++)
            are_neighbours &= group.pieces[i] == group.pieces[i - 1] + group.num_bytes;
        if (are_neighbours) {
            add_lines({{group.pieces[0]}, 1, group.num_pieces * group.num_bytes});
        } else if (group.num_pieces == 3) {
            for (Line piece : {group.pieces[0], group.pieces[1], group.pieces[2]})
                add_lines({{piece}, 1, group.num_bytes});
        } else {
            add_lines(group);
        }
    }

    // `steps` steps ask for all that was added, or but for an eighth, which is asked for now.
    void begin(int64_t steps) {
        lines_per_step_ = (num_lines_ + steps * 7 / 8) / steps;
        const int64_t num_asked = steps * lines_per_step_;
        for (next_ = lines_; next_ < lines_ + num_lines_ - num_asked; next_++) ask(*next_);
        // Steps that find nothing left to ask for do it once more.
        for (int64_t i = num_lines_; i < num_asked; i += 8) store_line_numbers(i, LineNumbers{} + (int64_t)lines_[0]);
    }

    // What the next `steps` steps ask for.
    const Line* take(int64_t steps) {
        const Line* taken = next_;
        next_ += steps * lines_per_step_;
        return taken;
    }

    PAGODA_INLINE void step(const Line*& lines) const {
        for (int64_t i = 0; i < lines_per_step_; i++) ask(*lines++);
    }

  private:
    static constexpr int64_t kLine = 64;
    // 64 keys and values of 256 float32; and as many that are asked for once more.
    static constexpr int64_t kMostLines = 4096;
    typedef int64_t LineNumbers __attribute__((vector_size(64)));

    static PAGODA_INLINE void ask(Line line) { __builtin_prefetch(line, 0, 3); }

    void store_line_numbers(int64_t at, LineNumbers numbers) { std::memcpy(lines_ + at, &numbers, sizeof numbers); }

    // num_pieces: 1, 2 or 4.
    void add_lines(const Group& group) {
        const int64_t pieces = group.num_pieces, turns = 8 / pieces;
        LineNumbers numbers;
        for (int64_t i = 0; i < 8; i++) numbers[i] = (int64_t)(group.pieces[i % pieces] + i / pieces * kLine);
        const int64_t num_lines = (group.num_bytes + kLine - 1) / kLine * pieces;
        for (int64_t i = 0; i < num_lines; i += 8, numbers += turns * kLine) store_line_numbers(num_lines_ + i, numbers);
        num_lines_ += num_lines;
    }

    Line lines_[kMostLines + 8];
    int64_t num_lines_ = 0, lines_per_step_ = 0;
    const Line* next_ = lines_;
};

}  // namespace pagoda
