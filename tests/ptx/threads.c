// Runs a kernel: a block's threads are fibers, each of which goes on until it waits for others.
#include "threads.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

enum { WARP = 32, MOST_THREADS = 1024, STACK = 64 << 10 };
enum state { READY, AT_BARRIER, AT_SHUFFLE, DONE };
enum order { FORWARD, REVERSE, RANDOM };

u32 ptx_tid, ptx_ctaid, ptx_ntid, ptx_nctaid;
const void* const* ptx_parameters;
_Alignas(16) char ptx_shared[48 << 10];

static struct {
    ucontext_t context;
    char* stack;
    enum state state;
    u32 place;    // of the instruction that it waits at
    u32 shuffles;  // how many it has begun
} fibers[MOST_THREADS];
static u32 exchanged[2][MOST_THREADS];  // of a warp's last shuffle, and of the one before
static ucontext_t scheduler;
static void (*kernel_to_run)(void);
static enum order order;
static u64 random_state;
static char message[200];

void ptx_set_order(int wanted, u64 seed) {
    order = wanted;
    random_state = seed;
}

const char* ptx_message(void) { return message; }

void ptx_fail(const char* what, u64 number) {
    snprintf(message, sizeof message, "block %u, thread %u: %s %#llx", ptx_ctaid, ptx_tid, what,
             (unsigned long long)number);
    setcontext(&scheduler);
    abort();  // not reached
}

static void begin(void) {
    kernel_to_run();
    fibers[ptx_tid].state = DONE;
    setcontext(&scheduler);
}

static void wait(enum state state, u32 place) {
    const u32 own = ptx_tid;
    fibers[own].state = state;
    fibers[own].place = place;
    swapcontext(&fibers[own].context, &scheduler);
}

void ptx_barrier(u32 place) { wait(AT_BARRIER, place); }

u32 ptx_shuffle(u32 place, u32 x, u32 lane_mask) {
    const u32 turn = fibers[ptx_tid].shuffles++ % 2;
    exchanged[turn][ptx_tid] = x;
    wait(AT_SHUFFLE, place);
    return exchanged[turn][ptx_tid ^ lane_mask];
}

// Lets threads [first, last) go on if all wait at the same instruction.
static bool released(u32 first, u32 last, enum state state) {
    for (u32 i = first; i < last; ++i)
        if (fibers[i].state != state || fibers[i].place != fibers[first].place) return false;
    for (u32 i = first; i < last; ++i) fibers[i].state = READY;
    return true;
}

static bool any_released(u32 threads) {
    bool any = released(0, threads, AT_BARRIER);
    for (u32 i = 0; i < threads; i += WARP)
        if (released(i, i + WARP, AT_SHUFFLE)) any = true;
    return any;
}

static u32 random_below(u32 n) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (u32)((random_state >> 33) % n);
}

static void put_in_order(u32* numbers, u32 n) {
    for (u32 i = 0; i < n; ++i) numbers[i] = order == REVERSE ? n - 1 - i : i;
    for (u32 i = n; order == RANDOM && i > 1; --i) {
        const u32 j = random_below(i), number = numbers[i - 1];
        numbers[i - 1] = numbers[j];
        numbers[j] = number;
    }
}

static void run_block(u32 threads) {
    static u32 turns[MOST_THREADS];
    memset(ptx_shared, 0xcd, sizeof ptx_shared);
    for (u32 i = 0; i < threads; ++i) {
        if (fibers[i].stack == NULL) fibers[i].stack = malloc(STACK);
        getcontext(&fibers[i].context);
        fibers[i].context.uc_stack.ss_sp = fibers[i].stack;
        fibers[i].context.uc_stack.ss_size = STACK;
        makecontext(&fibers[i].context, begin, 0);
        fibers[i].shuffles = 0;
        fibers[i].state = READY;
    }
    u32 done = 0;
    while (done < threads) {
        put_in_order(turns, threads);
        done = 0;
        for (u32 k = 0; k < threads; ++k) {
            ptx_tid = turns[k];
            if (fibers[ptx_tid].state == READY)
                swapcontext(&scheduler, &fibers[ptx_tid].context);
            if (message[0] != 0) return;  // a thread failed
            done += fibers[ptx_tid].state == DONE;
        }
        if (done < threads && !any_released(threads)) {
            snprintf(message, sizeof message, "block %u: threads wait for others that do not come",
                     ptx_ctaid);
            return;
        }
    }
}

static void on_wild_address(int signal, siginfo_t* info, void* context) {
    (void)signal;
    (void)context;
    ptx_fail("an access where there is no memory, at", (u64)info->si_addr);
}

static void run_blocks(u32 blocks, u32 threads) {
    u32* turns = malloc((blocks + 1) * sizeof *turns);
    put_in_order(turns, blocks);
    for (u32 k = 0; k < blocks && message[0] == 0; ++k) {
        ptx_ctaid = turns[k];
        run_block(threads);
    }
    free(turns);
}

// Returns 0, or 1 where something failed, which ptx_message() then tells.
int ptx_launch(void (*kernel)(void), u32 blocks, u32 threads, const void* const* parameters) {
    message[0] = 0;
    if (threads > MOST_THREADS || threads % WARP != 0) {
        snprintf(message, sizeof message, "a block of %u threads", threads);
        return 1;
    }
    kernel_to_run = kernel;
    ptx_parameters = parameters;
    ptx_ntid = threads;
    ptx_nctaid = blocks;
    const struct sigaction ours = {.sa_sigaction = on_wild_address, .sa_flags = SA_SIGINFO};
    struct sigaction before;
    sigaction(SIGSEGV, &ours, &before);
    run_blocks(blocks, threads);
    sigaction(SIGSEGV, &before, NULL);
    return message[0] != 0;
}
