// Calls kernels again as they were called elsewhere, and compares what they write: see replaying.py for the file.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

using Kernel = void(const void *plan, void *const *pointers);
extern "C" Kernel regard_affine, regard_agree, regard_convolve, regard_convolve_backward, regard_excite, regard_pick,
    regard_recalibrate, regard_reduce, regard_selfgate;

struct Known {
    const char *name;
    Kernel *run;
} const KERNELS[] = {
    {"affine", regard_affine},   {"agree", regard_agree},
    {"convolve", regard_convolve}, {"convolve_backward", regard_convolve_backward},
    {"excite", regard_excite},   {"pick", regard_pick},
    {"recalibrate", regard_recalibrate}, {"reduce", regard_reduce},
    {"selfgate", regard_selfgate},
};

enum Kind { FLOAT, BFLOAT16, EXACT };

struct Buffer {
    int64_t size, kind;
    char *now;
    std::vector<char> expected;
};

static FILE *file;

static void take(void *to, size_t size) {
    if (size && fread(to, size, 1, file) != 1) std::puts("the file ends too early"), std::exit(2);
}
static int64_t number() {
    int64_t value;
    take(&value, sizeof value);
    return value;
}

static float at(const char *from, int64_t kind, int64_t i) {
    uint32_t bits = 0;
    if (kind == FLOAT) std::memcpy(&bits, from + 4 * i, 4);
    else std::memcpy((char *)&bits + 2, from + 2 * i, 2);
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// How far what was written is from what was expected, relative to the largest number; infinite where NaN differ.
static double error(const Buffer &buffer) {
    if (buffer.kind == EXACT) return std::memcmp(buffer.now, buffer.expected.data(), buffer.size) ? INFINITY : 0;
    double most = 0, largest = 0;
    for (int64_t i = 0; i < buffer.size / (buffer.kind == FLOAT ? 4 : 2); i++) {
        const float got = at(buffer.now, buffer.kind, i), wanted = at(buffer.expected.data(), buffer.kind, i);
        if (got == wanted || (got != got && wanted != wanted)) {
            if (std::isfinite(wanted)) largest = std::fmax(largest, std::fabs(wanted));
            continue;
        }
        if (!std::isfinite(got) || !std::isfinite(wanted)) return INFINITY;
        largest = std::fmax(largest, std::fabs(wanted)), most = std::fmax(most, std::fabs((double)got - wanted));
    }
    return most ? most / largest : 0;
}

int main(int, char **words) {
    file = std::fopen(words[1], "rb");
    if (!file) return std::puts("no such file"), 2;
    int wrong = 0;
    double worst[3] = {};
    const int64_t calls = number();
    for (int64_t call = 0; call < calls; call++) {
        std::string name(number(), 0);
        take(&name[0], name.size());
        std::vector<int64_t> plan((number() + 7) / 8);
        take(plan.data(), 8 * plan.size());
        std::vector<Buffer> buffers(number());
        for (Buffer &buffer : buffers) {
            buffer.size = number(), buffer.kind = number();
            buffer.now = (char *)std::aligned_alloc(64, (buffer.size + 63) / 64 * 64 + 64);
            buffer.expected.resize(buffer.size);
            take(buffer.now, buffer.size), take(buffer.expected.data(), buffer.size);
        }
        auto address = [&]() -> void * {
            const int64_t which = number(), offset = number();
            return which < 0 ? nullptr : buffers[which].now + offset;
        };
        for (int64_t left = number(); left; left--) {
            const int64_t place = number();
            void *there = address();
            std::memcpy((char *)plan.data() + place, &there, sizeof there);
        }
        std::vector<void *> pointers(number());
        for (void *&pointer : pointers) pointer = address();
        const Known *known = KERNELS;
        while (name != known->name) known++;
        known->run(plan.data(), pointers.data());
        for (Buffer &buffer : buffers) {
            const double found = error(buffer), allowed[3] = {1e-5, 1e-2, 0};
            if (!(found <= allowed[buffer.kind])) wrong++, std::printf("%s, call %ld: off by %g\n", name.c_str(), (long)call, found);
            else worst[buffer.kind] = std::fmax(worst[buffer.kind], found);
            std::free(buffer.now);
        }
    }
    std::printf("%ld calls, %d wrong; float32 off by %g, bfloat16 by %g\n", (long)calls, wrong, worst[0], worst[1]);
    return wrong || !calls;
}
