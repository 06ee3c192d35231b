/* The inner loops of the codecs of stored tensors. What each one means is said, and done in numpy, in kernels.py,
   ordering.py and stretches.py; both give the same bytes.

   Arrays come as buffers, and all that belong to one call must fit together, which is looked at before anything is
   read. The GIL is let go of while a long loop runs: threads that often wait for it stand still half of the time, so
   what happens between the loops of a stretch happens here too. */

#define Py_LIMITED_API 0x030b0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>
#ifdef __x86_64__
#include <tmmintrin.h>
#endif

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "elements are little-endian; where the machine is not, numpy does the work"
#endif

typedef Py_ssize_t size;

#define KEYS 256
/* Parts of the elements that are put in order beside each other, so that none waits for what another just stored. */
#define LANES 4
#define WIDEST 8
/* As many as a byte can count. */
#define BLOCK 255
/* This gap stands for as many elements and goes on. */
#define LONGEST_GAP 255

/* How the key of an element is cut out of it. */
typedef struct {
    int shift;
    uint8_t mask;
} Key;

/* Where the next element of each key lies in the order, for each lane. */
typedef size Places[LANES][KEYS];

/* A loop of its own: inlined it would lose what `restrict` says, and take two to eight times as long. */
#define LOOP __attribute__((noinline)) static

/* ---- elements of two bytes, eight at a time: where the processor can put the bytes of a vector in any order ---- */

#ifdef __x86_64__
#define SHUFFLING __attribute__((target("ssse3")))
static int shuffles;
/* For each byte of bits, the highest for the first of eight elements: how many are set; where in a vector the bytes of
   those elements are, to squeeze them to its front; where they are when they lie there, to spread them; and the byte
   with its bits the other way around. */
static uint8_t set_in[256], to_squeeze[256][16], to_spread[256][16], turned[256];

static void prepare(void)
{
    for (int byte = 0; byte < 256; byte++) {
        int found = 0;
        turned[byte] = 0;
        memset(to_squeeze[byte], 0x80, 16);
        memset(to_spread[byte], 0x80, 16); /* What stands for a zero. */
        for (int at = 0; at < 8; at++) {
            turned[byte] |= (uint8_t)((byte >> at & 1) << (7 - at));
            if (byte >> (7 - at) & 1) {
                for (int half = 0; half < 2; half++) {
                    to_squeeze[byte][2 * found + half] = (uint8_t)(2 * at + half);
                    to_spread[byte][2 * at + half] = (uint8_t)(2 * found + half);
                }
                found++;
            }
        }
        set_in[byte] = (uint8_t)found;
    }
    __builtin_cpu_init();
    shuffles = __builtin_cpu_supports("ssse3") != 0;
}

/* The beginning of `squeeze`: returns how many elements it got through. */
SHUFFLING LOOP size squeeze_by_eight(const uint16_t *restrict d, size n, uint8_t *restrict bits,
                                     uint16_t *restrict values, size *found)
{
    size i = 0, to = 0;
    const __m128i zero = _mm_setzero_si128(), less_one = _mm_set1_epi16(-1);
    for (; i + 8 <= n; i += 8) {
        __m128i some = _mm_loadu_si128((const __m128i *)(d + i));
        int zeros = _mm_movemask_epi8(_mm_packs_epi16(_mm_cmpeq_epi16(some, zero), zero));
        uint8_t byte = turned[~zeros & 0xff];
        __m128i order = _mm_loadu_si128((const __m128i *)to_squeeze[byte]);
        _mm_storeu_si128((__m128i *)(values + to), _mm_shuffle_epi8(_mm_add_epi16(some, less_one), order));
        bits[i / 8] = byte;
        to += set_in[byte];
    }
    *found = to;
    return i;
}

/* The beginning of `spread`, as far as there is a vector of values left: returns how many elements it got through. */
SHUFFLING LOOP size spread_by_eight(const uint8_t *restrict bits, const uint16_t *restrict values, size room, size n,
                                    uint16_t *restrict out, size *used)
{
    size i = 0, at = 0;
    const __m128i one = _mm_set1_epi16(1);
    for (; i + 8 <= n && at + 8 <= room; i += 8) {
        uint8_t byte = bits[i / 8];
        __m128i some = _mm_add_epi16(_mm_loadu_si128((const __m128i *)(values + at)), one);
        __m128i order = _mm_loadu_si128((const __m128i *)to_spread[byte]);
        _mm_storeu_si128((__m128i *)(out + i), _mm_shuffle_epi8(some, order));
        at += set_in[byte];
    }
    *used = at;
    return i;
}
#else
enum { shuffles = 0 };
static void prepare(void) {}
static size squeeze_by_eight(const void *d, size n, uint8_t *bits, void *values, size *found) { return 0; }
static size spread_by_eight(const uint8_t *bits, const void *values, size room, size n, void *out, size *used)
{
    return 0;
}
#endif

/* ---- loops, for elements of W bytes ---- */

#define LOOPS(W, U)                                                                                                    \
    LOOP size difference##W(const U *restrict a, const U *restrict b, size n, U *restrict out)                         \
    {                                                                                                                  \
        size changed = 0;                                                                                              \
        for (size start = 0; start < n; start += BLOCK) {                                                              \
            size end = n - start < BLOCK ? n : start + BLOCK;                                                          \
            U found = 0; /* Counted in the width of the elements, which is what makes the loop quick. */               \
            for (size i = start; i < end; i++) {                                                                       \
                U d = (U)(a[i] - b[i]);                                                                                \
                out[i] = (U)((U)(d << 1) ^ (U)(0 - (U)(d >> (8 * W - 1))));                                            \
                found = (U)(found + (d != 0));                                                                         \
            }                                                                                                          \
            changed += (size)found;                                                                                    \
        }                                                                                                              \
        return changed;                                                                                                \
    }                                                                                                                  \
    LOOP void add##W(const U *restrict d, const U *restrict b, size n, U *restrict out)                                \
    {                                                                                                                  \
        for (size i = 0; i < n; i++)                                                                                   \
            out[i] = (U)(b[i] + (U)((U)(d[i] >> 1) ^ (U)(0 - (U)(d[i] & 1))));                                         \
    }                                                                                                                  \
                                                                                                                       \
    LOOP void count##W(const U *of, size n, Key key, size *counts)                                                     \
    {                                                                                                                  \
        size step = n / LANES;                                                                                         \
        for (int lane = 0; lane < LANES; lane++) {                                                                     \
            size each[LANES][KEYS] = {{0}}; /* So that none waits for what another just counted. */                    \
            size i = lane * step, end = lane == LANES - 1 ? n : i + step;                                              \
            for (; i + LANES <= end; i += LANES)                                                                       \
                for (int j = 0; j < LANES; j++)                                                                        \
                    each[j][(uint8_t)(of[i + j] >> key.shift) & key.mask]++;                                           \
            for (; i < end; i++)                                                                                       \
                each[0][(uint8_t)(of[i] >> key.shift) & key.mask]++;                                                   \
            for (int k = 0; k < KEYS; k++)                                                                             \
                counts[lane * KEYS + k] = each[0][k] + each[1][k] + each[2][k] + each[3][k];                           \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    LOOP size squeeze##W(const U *restrict d, size n, uint8_t *restrict bits, U *restrict values)                      \
    {                                                                                                                  \
        size found = 0, i = 0;                                                                                         \
        if (W == 2 && shuffles)                                                                                        \
            i = squeeze_by_eight((const void *)d, n, bits, (void *)values, &found);                                    \
        for (; i + 8 <= n; i += 8) {                                                                                   \
            unsigned byte = 0;                                                                                         \
            for (int j = 0; j < 8; j++) {                                                                              \
                unsigned is = d[i + j] != 0;                                                                           \
                values[found] = (U)(d[i + j] - 1);                                                                     \
                found += is;                                                                                           \
                byte = byte << 1 | is;                                                                                 \
            }                                                                                                          \
            bits[i / 8] = (uint8_t)byte;                                                                               \
        }                                                                                                              \
        for (unsigned byte = 0, bit = 128; i < n; i++, bit /= 2) {                                                     \
            unsigned is = d[i] != 0;                                                                                   \
            values[found] = (U)(d[i] - 1);                                                                             \
            found += is;                                                                                               \
            bits[i / 8] = (uint8_t)(byte |= is ? bit : 0);                                                             \
        }                                                                                                              \
        return found;                                                                                                  \
    }                                                                                                                  \
    LOOP void spread##W(const uint8_t *restrict bits, const U *restrict values, size room, size n, U *restrict out)    \
    {                                                                                                                  \
        size at = 0, i = 0;                                                                                            \
        if (W == 2 && shuffles)                                                                                        \
            i = spread_by_eight(bits, (const void *)values, room, n, (void *)out, &at);                                \
        for (; i + 8 <= n; i += 8) {                                                                                   \
            unsigned byte = bits[i / 8];                                                                               \
            for (int j = 0; j < 8; j++) {                                                                              \
                U is = (U)(byte >> (7 - j) & 1);                                                                       \
                out[i + j] = (U)((U)(values[at] + 1) & (U)(0 - is));                                                   \
                at += is;                                                                                              \
            }                                                                                                          \
        }                                                                                                              \
        for (; i < n; i++) {                                                                                           \
            U is = (U)(bits[i / 8] >> (7 - i % 8) & 1);                                                                \
            out[i] = (U)((U)(values[at] + 1) & (U)(0 - is));                                                           \
            at += is;                                                                                                  \
        }                                                                                                              \
    }                                                                                                                  \
    LOOP size gaps##W(const U *restrict d, size n, uint8_t *restrict gaps, size room, U *restrict values, size most)   \
    {                                                                                                                  \
        size found = 0, gap = 0, last = 0;                                                                             \
        for (size i = 0; i < n; i++) {                                                                                 \
            uint64_t some = 0;                                                                                         \
            while (i + WIDEST / W <= n && (memcpy(&some, d + i, WIDEST), some == 0))                                   \
                i += WIDEST / W;                                                                                       \
            while (i < n && d[i] == 0)                                                                                 \
                i++;                                                                                                   \
            if (i == n)                                                                                                \
                break;                                                                                                 \
            for (; i - last >= LONGEST_GAP && gap < room; last += LONGEST_GAP)                                         \
                gaps[gap++] = LONGEST_GAP;                                                                             \
            if (gap == room || found == most)                                                                          \
                return -1;                                                                                             \
            gaps[gap++] = (uint8_t)(i - last);                                                                         \
            values[found++] = (U)(d[i] - 1);                                                                           \
            last = i + 1;                                                                                              \
        }                                                                                                              \
        return found == most ? gap : -1;                                                                               \
    }                                                                                                                  \
                                                                                                                       \
    LOOP int leap##W(const uint8_t *gaps, size count, const U *values, size most, size n, U *out)                      \
    {                                                                                                                  \
        size at = 0, used = 0;                                                                                         \
        memset(out, 0, (size_t)n * W);                                                                                 \
        for (size i = 0; i < count; i++) {                                                                             \
            at += gaps[i];                                                                                             \
            if (gaps[i] == LONGEST_GAP)                                                                                \
                continue;                                                                                              \
            if (at >= n || used == most)                                                                               \
                return 0;                                                                                              \
            out[at++] = (U)(values[used++] + 1);                                                                       \
        }                                                                                                              \
        return used == most;                                                                                           \
    }                                                                                                                  \
    LOOP uint64_t any##W(const U *of, size n)                                                                          \
    {                                                                                                                  \
        U all = 0;                                                                                                     \
        for (size i = 0; i < n; i++)                                                                                   \
            all |= of[i];                                                                                              \
        return all;                                                                                                    \
    }                                                                                                                  \
                                                                                                                       \
    LOOP void cut##W(const U *restrict of, size n, int rotate, int place, uint8_t *restrict plane)                     \
    {                                                                                                                  \
        if (rotate)                                                                                                    \
            for (size i = 0; i < n; i++)                                                                               \
                plane[i] = (uint8_t)((U)((U)(of[i] << 1) | (U)(of[i] >> (8 * W - 1))) >> (8 * place));                 \
        else                                                                                                           \
            for (size i = 0; i < n; i++)                                                                               \
                plane[i] = (uint8_t)(of[i] >> (8 * place));                                                            \
    }                                                                                                                  \
                                                                                                                       \
    LOOP void join##W(uint8_t *const planes[], size n, int rotate, U *restrict out)                                    \
    {                                                                                                                  \
        for (size i = 0; i < n; i++) {                                                                                 \
            U all = 0;                                                                                                 \
            for (int place = 0; place < W; place++)                                                                    \
                all |= (U)((U)planes[place][i] << (8 * place));                                                        \
            out[i] = rotate ? (U)((U)(all >> 1) | (U)(all << (8 * W - 1))) : all;                                      \
        }                                                                                                              \
    }

LOOPS(1, uint8_t)
LOOPS(2, uint16_t)
LOOPS(4, uint32_t)
LOOPS(8, uint64_t)

/* Elements of W bytes in the order of the keys of elements of V bytes, and back. */
#define ORDER(V, P, W, U)                                                                                              \
    LOOP void sort##V##W(const P *of, size n, Key key, Places next, const U *restrict in, U *restrict out)             \
    {                                                                                                                  \
        size step = n / LANES, i = 0;                                                                                  \
        for (; i < step; i++)                                                                                          \
            for (int lane = 0; lane < LANES; lane++)                                                                   \
                out[next[lane][(uint8_t)(of[lane * step + i] >> key.shift) & key.mask]++] = in[lane * step + i];       \
        for (i = LANES * step; i < n; i++)                                                                             \
            out[next[LANES - 1][(uint8_t)(of[i] >> key.shift) & key.mask]++] = in[i];                                  \
    }                                                                                                                  \
                                                                                                                       \
    LOOP void unsort##V##W(const P *of, size n, Key key, Places next, const U *restrict in, U *restrict out)           \
    {                                                                                                                  \
        size step = n / LANES, i = 0;                                                                                  \
        for (; i < step; i++)                                                                                          \
            for (int lane = 0; lane < LANES; lane++)                                                                   \
                out[lane * step + i] = in[next[lane][(uint8_t)(of[lane * step + i] >> key.shift) & key.mask]++];       \
        for (i = LANES * step; i < n; i++)                                                                             \
            out[i] = in[next[LANES - 1][(uint8_t)(of[i] >> key.shift) & key.mask]++];                                  \
    }

ORDER(1, uint8_t, 1, uint8_t)
ORDER(2, uint16_t, 1, uint8_t)
ORDER(2, uint16_t, 2, uint16_t)
ORDER(4, uint32_t, 1, uint8_t)
ORDER(4, uint32_t, 4, uint32_t)
ORDER(8, uint64_t, 1, uint8_t)
ORDER(8, uint64_t, 8, uint64_t)

#define EACH_WIDTH(width, call)                                                                                        \
    switch (width) {                                                                                                   \
    case 1: call(1, uint8_t) break;                                                                                    \
    case 2: call(2, uint16_t) break;                                                                                   \
    case 4: call(4, uint32_t) break;                                                                                   \
    case 8: call(8, uint64_t) break;                                                                                   \
    }

/* ---- what Python calls ---- */

/* To let go of the GIL and to wait for it again takes as long as going through some ten thousand bytes. */
#define LONG_LOOP (1 << 15)
#define BEGIN(bytes) PyThreadState *saved = (bytes) >= LONG_LOOP ? PyEval_SaveThread() : NULL;
#define END                                                                                                            \
    if (saved)                                                                                                         \
        PyEval_RestoreThread(saved);

static int is_width(int width) { return width == 1 || width == 2 || width == 4 || width == 8; }

/* Whether a buffer holds whole elements of a width, and where they may lie. */
static int holds(const Py_buffer *buffer, int width)
{
    return is_width(width) && buffer->len % width == 0 && (uintptr_t)buffer->buf % width == 0;
}

static PyObject *misfit(void)
{
    PyErr_SetString(PyExc_ValueError, "arrays that do not fit together");
    return NULL;
}

static void release(Py_buffer *buffers, int count)
{
    for (int i = 0; i < count; i++)
        PyBuffer_Release(&buffers[i]);
}

/* difference(width, elements, parents, out): returns how many elements differ. */
static PyObject *difference(PyObject *self, PyObject *args)
{
    int width;
    Py_buffer a[3];
    if (!PyArg_ParseTuple(args, "iy*y*w*", &width, &a[0], &a[1], &a[2]))
        return NULL;
    size changed = 0;
    int fits = holds(&a[0], width) && holds(&a[1], width) && holds(&a[2], width) && a[1].len == a[0].len &&
               a[2].len == a[0].len;
    if (fits) {
        size n = a[0].len / width;
        BEGIN(a[0].len)
#define CALL_difference(W, U) changed = difference##W((const U *)a[0].buf, (const U *)a[1].buf, n, (U *)a[2].buf);
        EACH_WIDTH(width, CALL_difference)
        END
    }
    release(a, 3);
    return fits ? PyLong_FromSsize_t(changed) : misfit();
}

/* add(width, differences, parents, out) */
static PyObject *add(PyObject *self, PyObject *args)
{
    int width;
    Py_buffer a[3];
    if (!PyArg_ParseTuple(args, "iy*y*w*", &width, &a[0], &a[1], &a[2]))
        return NULL;
    int fits = holds(&a[0], width) && holds(&a[1], width) && holds(&a[2], width) && a[1].len == a[0].len &&
               a[2].len == a[0].len;
    if (fits) {
        size n = a[0].len / width;
        BEGIN(a[0].len)
#define CALL_add(W, U) add##W((const U *)a[0].buf, (const U *)a[1].buf, n, (U *)a[2].buf);
        EACH_WIDTH(width, CALL_add)
        END
    }
    release(a, 3);
    if (!fits)
        return misfit();
    Py_RETURN_NONE;
}

/* count(width, of, shift, mask, counts): how often each key is there in each lane, LANES * KEYS numbers. */
static PyObject *count(PyObject *self, PyObject *args)
{
    int width;
    Key key;
    Py_buffer a[2];
    if (!PyArg_ParseTuple(args, "iy*ibw*", &width, &a[0], &key.shift, &key.mask, &a[1]))
        return NULL;
    int fits = holds(&a[0], width) && holds(&a[1], sizeof(size)) && a[1].len == sizeof(Places) && key.shift >= 0 &&
               key.shift < 8 * width;
    if (fits) {
        size n = a[0].len / width;
        BEGIN(a[0].len)
#define CALL_count(W, U) count##W((const U *)a[0].buf, n, key, (size *)a[1].buf);
        EACH_WIDTH(width, CALL_count)
        END
    }
    release(a, 2);
    if (!fits)
        return misfit();
    Py_RETURN_NONE;
}

/* Where the elements of each key begin, from how many there are. False when that is not as many as there are. */
static int begin(const size *counts, size n, Places next)
{
    size at = 0;
    for (int k = 0; k < KEYS; k++)
        for (int lane = 0; lane < LANES; lane++) {
            size here = counts[lane * KEYS + k];
            if (here < 0 || here > n - at)
                return 0;
            next[lane][k] = at;
            at += here;
        }
    return at == n;
}

/* sort or unsort(width, of, shift, mask, counts, column_width, column, out): counts are those of the same elements. */
static PyObject *ordered(PyObject *args, int back)
{
    int width, column_width;
    Key key;
    Py_buffer a[4];
    if (!PyArg_ParseTuple(args, "iy*iby*iy*w*", &width, &a[0], &key.shift, &key.mask, &a[1], &column_width, &a[2], &a[3]))
        return NULL;
    int fits = holds(&a[0], width) && holds(&a[1], sizeof(size)) && holds(&a[2], column_width) &&
               holds(&a[3], column_width) && a[1].len == sizeof(Places) && key.shift >= 0 && key.shift < 8 * width &&
               (column_width == 1 || column_width == width) && a[2].len == a[0].len / width * column_width &&
               a[3].len == a[2].len;
    size n = fits ? a[0].len / width : 0;
    Places next;
    fits = fits && begin((const size *)a[1].buf, n, next);
    if (fits) {
        const void *of = a[0].buf, *in = a[2].buf;
        void *out = a[3].buf;
        BEGIN(a[0].len)
#define CALL_ordered(V, W)                                                                                             \
    back ? unsort##V##W(of, n, key, next, in, out) : sort##V##W(of, n, key, next, in, out);                            \
    break;
        switch (16 * width + column_width) {
        case 0x11: CALL_ordered(1, 1)
        case 0x21: CALL_ordered(2, 1)
        case 0x22: CALL_ordered(2, 2)
        case 0x41: CALL_ordered(4, 1)
        case 0x44: CALL_ordered(4, 4)
        case 0x81: CALL_ordered(8, 1)
        case 0x88: CALL_ordered(8, 8)
        }
        END
    }
    release(a, 4);
    if (!fits)
        return misfit();
    Py_RETURN_NONE;
}

static PyObject *sort(PyObject *self, PyObject *args) { return ordered(args, 0); }
static PyObject *unsort(PyObject *self, PyObject *args) { return ordered(args, 1); }

/* set_bits(width, elements): all bits that are set in some element, as one number. */
static PyObject *set_bits(PyObject *self, PyObject *args)
{
    int width;
    uint64_t all = 0;
    Py_buffer a[1];
    if (!PyArg_ParseTuple(args, "iy*", &width, &a[0]))
        return NULL;
    int fits = holds(&a[0], width);
    if (fits) {
        size n = a[0].len / width;
        BEGIN(a[0].len)
#define CALL_any(W, U) all = any##W((const U *)a[0].buf, n);
        EACH_WIDTH(width, CALL_any)
        END
    }
    release(a, 1);
    return fits ? PyLong_FromUnsignedLongLong(all) : misfit();
}

/* cut(width, elements, rotate, place, plane): byte number `place` of each element. */
static PyObject *cut(PyObject *self, PyObject *args)
{
    int width, rotate, place;
    Py_buffer a[2];
    if (!PyArg_ParseTuple(args, "iy*piw*", &width, &a[0], &rotate, &place, &a[1]))
        return NULL;
    int fits = holds(&a[0], width) && a[1].len == a[0].len / width && place >= 0 && place < width;
    if (fits) {
        size n = a[1].len;
        BEGIN(a[0].len)
#define CALL_cut(W, U) cut##W((const U *)a[0].buf, n, rotate, place, (uint8_t *)a[1].buf);
        EACH_WIDTH(width, CALL_cut)
        END
    }
    release(a, 2);
    if (!fits)
        return misfit();
    Py_RETURN_NONE;
}

/* join(width, planes, rotate, out): the inverse of `cut`, from a tuple of `width` planes. */
static PyObject *join(PyObject *self, PyObject *args)
{
    int width, rotate, held = 0;
    PyObject *tuple;
    Py_buffer out, a[WIDEST];
    if (!PyArg_ParseTuple(args, "iO!pw*", &width, &PyTuple_Type, &tuple, &rotate, &out))
        return NULL;
    int fits = holds(&out, width) && PyTuple_Size(tuple) == width;
    for (; fits && held < width; held++) {
        if (PyObject_GetBuffer(PyTuple_GetItem(tuple, held), &a[held], PyBUF_SIMPLE) < 0)
            break;
        fits = a[held].len == out.len / width;
    }
    if (fits && held == width) {
        size n = out.len / width;
        uint8_t *planes[WIDEST];
        for (int place = 0; place < width; place++)
            planes[place] = a[place].buf;
        BEGIN(out.len)
#define CALL_join(W, U) join##W(planes, n, rotate, (U *)out.buf);
        EACH_WIDTH(width, CALL_join)
        END
    }
    release(a, held);
    PyBuffer_Release(&out);
    if (PyErr_Occurred())
        return NULL;
    if (!fits)
        return misfit();
    Py_RETURN_NONE;
}

/* same(a, b): whether two buffers hold the same bytes. */
static PyObject *same(PyObject *self, PyObject *args)
{
    Py_buffer a[2];
    if (!PyArg_ParseTuple(args, "y*y*", &a[0], &a[1]))
        return NULL;
    int equal = a[0].len == a[1].len;
    if (equal) {
        BEGIN(a[0].len)
        equal = memcmp(a[0].buf, a[1].buf, (size_t)a[0].len) == 0;
        END
    }
    release(a, 2);
    return PyBool_FromLong(equal);
}

/* ---- planes and stretches in a frame: packing.py and stretches.py ---- */

/* How a plane is stored. */
enum { STORED, FILLED, ZSTD };
/* What is said of a stretch. */
enum { SAME, ALL, BITMAP, GAPS };
/* Fewer bytes are not worth a zstd frame. */
#define SMALLEST 24

/* How many bits of the next eight bytes are set: added up in pairs, in fours, in bytes, and all together. */
static size count_bits(const uint8_t *of)
{
    uint64_t bits;
    memcpy(&bits, of, sizeof bits);
    bits -= bits >> 1 & 0x5555555555555555u;
    bits = (bits & 0x3333333333333333u) + (bits >> 2 & 0x3333333333333333u);
    bits = (bits + (bits >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    return (size)(bits * 0x0101010101010101u >> 56);
}

/* How many of the first n bits are set. */
static size count_set(const uint8_t *bits, size n)
{
    size set = 0, i = 0;
    for (; i + 64 <= n; i += 64)
        set += count_bits(bits + i / 8);
    for (; i < n; i++)
        set += bits[i / 8] >> (7 - i % 8) & 1;
    return set;
}

/* Appends n bytes to a list. */
static int put(PyObject *parts, const void *bytes, size n)
{
    PyObject *part = PyBytes_FromStringAndSize(bytes, n);
    int done = part != NULL && PyList_Append(parts, part) == 0;
    Py_XDECREF(part);
    return done;
}

/* Appends a byte, unless it is -1, and a number, seven bits a byte, the lowest first. */
static int put_number(PyObject *parts, int byte, size number)
{
    uint8_t bytes[1 + 10] = {(uint8_t)byte};
    int n = byte < 0 ? 0 : 1;
    for (; number > 0x7f; number >>= 7)
        bytes[n++] = (uint8_t)(number & 0x7f) | 0x80;
    bytes[n++] = (uint8_t)number;
    return put(parts, bytes, n);
}

static int put_numbers(PyObject *parts, size one, size other)
{
    return put_number(parts, -1, one) && put_number(parts, -1, other);
}

static int put_plane(PyObject *parts, PyObject *compress, const uint8_t *plane, size n)
{
    if (n == 0)
        return 1;
    if (memcmp(plane, plane + 1, (size_t)n - 1) == 0) {
        uint8_t filled[] = {FILLED, plane[0]};
        return put(parts, filled, 2);
    }
    if (n >= SMALLEST) {
        PyObject *view = PyMemoryView_FromMemory((char *)plane, n, PyBUF_READ);
        PyObject *packed = view ? PyObject_CallFunctionObjArgs(compress, view, NULL) : NULL;
        Py_XDECREF(view);
        size length = packed ? PyBytes_Size(packed) : -1;
        int pays = length >= 0 && length + 3 < n;
        int done = length >= 0 && (!pays || (put_number(parts, ZSTD, length) && PyList_Append(parts, packed) == 0));
        Py_XDECREF(packed);
        if (!done || pays)
            return done;
    }
    uint8_t stored = STORED;
    return put(parts, &stored, 1) && put(parts, plane, n);
}

/* Appends elements as planes, from the lowest byte to the highest. `plane` has room for a byte of each. */
static int put_elements(PyObject *parts, PyObject *compress, int width, const void *elements, size n, uint8_t *plane)
{
    if (width == 1)
        return put_plane(parts, compress, elements, n);
    uint64_t all = 0;
    BEGIN(n * width)
#define CALL_any_of(W, U) all = any##W((const U *)elements, n);
    EACH_WIDTH(width, CALL_any_of)
    END
    int place = 0;
    for (; place == 0 || (place < width && all >> (8 * place) != 0); place++) {
        BEGIN(n * width)
#define CALL_cut_of(W, U) cut##W((const U *)elements, n, 0, place, plane);
        EACH_WIDTH(width, CALL_cut_of)
        END
        if (!put_plane(parts, compress, plane, n))
            return 0;
    }
    const uint8_t filled[] = {FILLED, 0};
    for (; n != 0 && place < width; place++)
        if (!put(parts, filled, 2))
            return 0;
    return 1;
}

/* write_stretch(width, form, differences, changed, compress, marks, values, plane): returns a list of bytes.

   The last three are room: for a byte of each difference, for all of them and one more, and for a byte of each. */
static PyObject *write_stretch(PyObject *self, PyObject *args)
{
    int width, form;
    size changed;
    PyObject *compress;
    Py_buffer a[4];
    if (!PyArg_ParseTuple(args, "iiy*nOw*w*w*", &width, &form, &a[0], &changed, &compress, &a[1], &a[2], &a[3]))
        return NULL;
    int fits = holds(&a[0], width) && holds(&a[2], width) && form >= SAME && form <= GAPS;
    size n = fits ? a[0].len / width : 0, gap = 0, found = 0;
    fits = fits && a[1].len >= n && a[2].len >= (n + 1) * width && a[3].len >= n && changed >= 0 && changed <= n;
    const void *differences = a[0].buf;
    uint8_t *marks = a[1].buf;
    void *values = a[2].buf;
    if (fits && form == BITMAP) {
        BEGIN(n * width)
#define CALL_squeeze(W, U) found = squeeze##W((const U *)differences, n, marks, (U *)values);
        EACH_WIDTH(width, CALL_squeeze)
        END
        fits = found == changed;
    }
    if (fits && form == GAPS) {
        BEGIN(n * width)
#define CALL_gaps(W, U) gap = gaps##W((const U *)differences, n, marks, n, (U *)values, changed);
        EACH_WIDTH(width, CALL_gaps)
        END
        fits = gap >= 0;
    }
    PyObject *parts = fits ? PyList_New(0) : misfit();
    int done = parts && put_number(parts, form, n);
    if (done && form == ALL)
        done = put_elements(parts, compress, width, differences, n, a[3].buf);
    if (done && form == BITMAP)
        done = put_plane(parts, compress, marks, (n + 7) / 8) &&
               put_elements(parts, compress, width, values, changed, a[3].buf);
    if (done && form == GAPS)
        done = put_numbers(parts, changed, gap) && put_plane(parts, compress, marks, gap) &&
               put_elements(parts, compress, width, values, changed, a[3].buf);
    release(a, 4);
    if (!done)
        Py_CLEAR(parts);
    return parts;
}

/* A frame that is being read. `decompress(packed, size)` gives the bytes of a plane. */
typedef struct {
    const uint8_t *bytes;
    size at, end;
    PyObject *decompress;
} Frame;

/* A plane that was read: in the frame itself, or in the object that owns it. */
typedef struct {
    const uint8_t *bytes;
    PyObject *owner;
} Plane;

static int wrong(const char *what)
{
    PyErr_SetString(PyExc_ValueError, what);
    return 0;
}

static int get_byte(Frame *frame, int *byte)
{
    if (frame->at == frame->end)
        return wrong("it is cut short");
    *byte = frame->bytes[frame->at++];
    return 1;
}

static int get_number(Frame *frame, size most, size *number)
{
    uint64_t value = 0;
    for (int shift = 0, byte = 0x80; byte & 0x80; shift += 7) {
        if (shift > 63)
            return wrong("a length does not end");
        if (!get_byte(frame, &byte))
            return 0;
        uint64_t more = (uint64_t)(byte & 0x7f);
        value |= more << shift;
        if (value > (uint64_t)most || more << shift >> shift != more) {
            PyErr_Format(PyExc_ValueError, "a length is larger than %zd", most);
            return 0;
        }
    }
    *number = (size)value;
    return 1;
}

/* The next bytes, for reading. */
static const uint8_t *get_bytes(Frame *frame, size n)
{
    if (n > frame->end - frame->at) {
        wrong("it is cut short");
        return NULL;
    }
    frame->at += n;
    return frame->bytes + frame->at - n;
}

/* The owner of the plane is the caller's to release. */
static int get_plane(Frame *frame, size n, Plane *plane)
{
    int kind, byte;
    size length;
    plane->owner = NULL;
    plane->bytes = frame->bytes;
    if (n == 0)
        return 1;
    if (!get_byte(frame, &kind))
        return 0;
    if (kind == STORED)
        return (plane->bytes = get_bytes(frame, n)) != NULL;
    if (kind == FILLED) {
        if (!get_byte(frame, &byte) || !(plane->owner = PyBytes_FromStringAndSize(NULL, n)))
            return 0;
        memset(PyBytes_AsString(plane->owner), byte, (size_t)n);
    } else if (kind == ZSTD) {
        const uint8_t *packed;
        if (!get_number(frame, n, &length) || !(packed = get_bytes(frame, length)))
            return 0;
        PyObject *view = PyMemoryView_FromMemory((char *)packed, length, PyBUF_READ);
        plane->owner = view ? PyObject_CallFunction(frame->decompress, "On", view, n) : NULL;
        Py_XDECREF(view);
        if (!plane->owner || PyBytes_Size(plane->owner) != n) {
            Py_CLEAR(plane->owner);
            return PyErr_Occurred() ? 0 : wrong("a plane has another length than it should");
        }
    } else {
        PyErr_Format(PyExc_ValueError, "a plane is stored in the unknown way %d", kind);
        return 0;
    }
    plane->bytes = (const uint8_t *)PyBytes_AsString(plane->owner);
    return 1;
}

/* Elements that put_elements appended. */
static int get_elements(Frame *frame, int width, size n, void *out)
{
    Plane planes[WIDEST];
    uint8_t *bytes[WIDEST];
    int held = 0;
    for (; held < width && get_plane(frame, n, &planes[held]); held++)
        bytes[held] = (uint8_t *)planes[held].bytes;
    if (held == width) {
        BEGIN(n * width)
#define CALL_join_of(W, U) join##W(bytes, n, 0, (U *)out);
        EACH_WIDTH(width, CALL_join_of)
        END
    }
    for (int place = 0; place < held; place++)
        Py_XDECREF(planes[place].owner);
    return held == width;
}

static int get_stretch(Frame *frame, int width, int form, size n, void *values, void *out)
{
    size changed, count;
    Plane marks;
    int done = 0, sound = 0;
    switch (form) {
    case SAME: memset(out, 0, (size_t)(n * width)); return 1;
    case ALL: return get_elements(frame, width, n, out);
    case BITMAP:
        if (!get_plane(frame, (n + 7) / 8, &marks))
            return 0;
        changed = count_set(marks.bytes, n);
        done = get_elements(frame, width, changed, values);
        if (done) {
            BEGIN(n * width)
#define CALL_spread(W, U) spread##W(marks.bytes, (const U *)values, changed + 1, n, (U *)out);
            EACH_WIDTH(width, CALL_spread)
            END
        }
        Py_XDECREF(marks.owner);
        return done;
    case GAPS:
        if (!get_number(frame, n, &changed) || !get_number(frame, changed + n / LONGEST_GAP, &count) ||
            !get_plane(frame, count, &marks))
            return 0;
        done = get_elements(frame, width, changed, values);
        if (done) {
            BEGIN(n * width)
#define CALL_leap(W, U) sound = leap##W(marks.bytes, count, (const U *)values, changed, n, (U *)out);
            EACH_WIDTH(width, CALL_leap)
            END
        }
        Py_XDECREF(marks.owner);
        return done && (sound || wrong("it changes elements that are not there"));
    }
    PyErr_Format(PyExc_ValueError, "a stretch is stored in the unknown way %d", form);
    return 0;
}

/* read_stretches(width, frame, at, decompress, values, out): returns where in the frame they end.

   `values` is room for as many elements as `out` has and one more. */
static PyObject *read_stretches(PyObject *self, PyObject *args)
{
    int width, form;
    size count;
    Frame frame;
    Py_buffer a[3];
    if (!PyArg_ParseTuple(args, "iy*nOw*w*", &width, &a[0], &frame.at, &frame.decompress, &a[1], &a[2]))
        return NULL;
    frame.bytes = a[0].buf;
    frame.end = a[0].len;
    int sound = holds(&a[1], width) && holds(&a[2], width) && a[1].len >= a[2].len + width && frame.at >= 0 &&
                frame.at <= frame.end;
    if (!sound)
        misfit();
    for (size done = 0, n = sound ? a[2].len / width : 0; sound && done < n; done += count) {
        sound = get_byte(&frame, &form) && get_number(&frame, n - done, &count) &&
                (count != 0 || wrong("a stretch has no elements")) &&
                get_stretch(&frame, width, form, count, a[1].buf, (char *)a[2].buf + done * width);
    }
    release(a, 3);
    return sound ? PyLong_FromSsize_t(frame.at) : NULL;
}

static PyMethodDef methods[] = {
    {"difference", difference, METH_VARARGS, NULL}, {"add", add, METH_VARARGS, NULL},
    {"count", count, METH_VARARGS, NULL},           {"sort", sort, METH_VARARGS, NULL},
    {"unsort", unsort, METH_VARARGS, NULL},         {"set_bits", set_bits, METH_VARARGS, NULL},
    {"cut", cut, METH_VARARGS, NULL},               {"join", join, METH_VARARGS, NULL},
    {"same", same, METH_VARARGS, NULL},             {"write_stretch", write_stretch, METH_VARARGS, NULL},
    {"read_stretches", read_stretches, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

/* Raised with every change of what a function takes or gives; kernels.py leaves another revision alone. */
#define REVISION 2

static int begun(PyObject *module)
{
    prepare();
    return PyModule_AddIntConstant(module, "REVISION", REVISION);
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, begun}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_kernels", "The inner loops of the codecs of stored tensors.", 0, methods, slots,
    NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModuleDef_Init(&definition); }
