/* The inner loops of the engine on a CPU, for compiled.py, which checks and allocates everything: texture counts in one
   pass over the voxels of each lesion, the surface's sums and largest distances, filters.

   Voxels are given by `local`, their flat place in boxes of `box` cells, lesion by lesion (lesion k owns begin[k] ..
   begin[k + 1] - 1). Regions keep clear of their box's faces by a cell, so that a neighbour is always in the box and a
   run ends at a cell of level 0. `level` holds the levels of each image in rows of `stride`, one or two bytes each.
   `steps` are the 13 directions as distances in a box. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define VERSION 1 /* as in compiled.py: a new one with each change of what a function takes or gives */
#define DIRECTIONS 13
#define NEIGHBOURS 27

typedef struct {
    const void *level;
    int64_t bytes, stride, images, lesions, box;
    const int64_t *begin, *local, *steps;
} Work;

int workbench_version(void) { return VERSION; }

static inline int level_at(const Work *w, int64_t i) {
    return w->bytes == 1 ? ((const uint8_t *)w->level)[i] : ((const int16_t *)w->level)[i];
}

/* Levels of one lesion in one image into its box; `with` 0 clears them again. */
static void lay(const Work *w, int64_t image, int64_t lesion, uint16_t *cells, int with) {
    for (int64_t v = w->begin[lesion]; v < w->begin[lesion + 1]; v++)
        cells[w->local[v] - lesion * w->box] = with ? (uint16_t)level_at(w, image * w->stride + v) : 0;
}

/* How often level j lies ahead of level i, for the segments whose start is not negative:
   table[direction][start + (i - 1) * (width + 1) + j], j = 0 for no neighbour. Returns 0, or 1 without memory. */
int workbench_pairs(const Work *w, const int64_t *start, const int64_t *width, int64_t size, int32_t *table) {
    uint16_t *cells = calloc(w->box, sizeof *cells);
    if (!cells) return 1;
    for (int64_t image = 0; image < w->images; image++)
        for (int64_t lesion = 0; lesion < w->lesions; lesion++) {
            const int64_t segment = image * w->lesions + lesion, wide = width[segment] + 1;
            if (start[segment] < 0) continue;
            lay(w, image, lesion, cells, 1);
            for (int64_t v = w->begin[lesion]; v < w->begin[lesion + 1]; v++) {
                const uint16_t *at = cells + (w->local[v] - lesion * w->box);
                int32_t *row = table + start[segment] + (*at - 1) * wide;
                for (int d = 0; d < DIRECTIONS; d++) row[d * size + at[w->steps[d]]]++;
            }
            lay(w, image, lesion, cells, 0);
        }
    free(cells);
    return 0;
}

static inline int32_t root_of(int32_t *parent, int32_t i) {
    while (parent[i] != i) i = parent[i] = parent[parent[i]];
    return i;
}

/* Runs, zones, dependences and neighbourhood differences of all segments, by row (one level of one segment; `first` is
   the row of a segment's level 1).

   runs[row][direction][length - 1], of two voxels and more; dependence[row][voxels of equal level, itself included, - 1];
   distance[row] the sum of |level - mean level of the neighbours|; paired[direction][lesion] whether two voxels are
   neighbours; zone_row and zone_size (room for one a voxel and image). Bit d of a mask stands for direction d;
   `needed[mask]` are the neighbours to which a voxel is to be joined when those of the mask have its level: the others
   are joined to one of them already. Returns the number of zones, or -1 without memory. */
int64_t workbench_tally(const Work *w, const int64_t *first, int64_t longest, const uint16_t *needed,
                        int32_t *runs, int32_t *dependence, double *distance, uint8_t *paired, int32_t *zone_row,
                        int32_t *zone_size) {
    uint16_t *cells = calloc(w->box, sizeof *cells);
    int32_t *parent = malloc(w->box * sizeof *parent), *size = malloc(w->box * sizeof *size);
    int64_t zones = 0, steps[DIRECTIONS];
    memcpy(steps, w->steps, sizeof steps);
    if (!cells || !parent || !size) zones = -1;
    for (int64_t image = 0; zones >= 0 && image < w->images; image++)
        for (int64_t lesion = 0; lesion < w->lesions; lesion++) {
            const int64_t base = lesion * w->box, begin = w->begin[lesion], end = w->begin[lesion + 1];
            const int64_t row_0 = first[image * w->lesions + lesion] - 1;
            unsigned met = 0;
            lay(w, image, lesion, cells, 1);
            for (int64_t v = begin; v < end; v++) {
                const int32_t place = (int32_t)(w->local[v] - base);
                const uint16_t *at = cells + place;
                const unsigned own = *at;
                const int64_t row = row_0 + own;
                unsigned around = 0, count = 0, equal = 0, on = 0, back = 0;
                for (int d = 0; d < DIRECTIONS; d++) {
                    const unsigned ahead = at[steps[d]], behind = at[-steps[d]];
                    around += ahead + behind;
                    count += (ahead > 0) + (behind > 0);
                    equal += (ahead == own) + (behind == own);
                    met |= (unsigned)(ahead > 0) << d;
                    on |= (unsigned)(ahead == own) << d;
                    back |= (unsigned)(behind == own) << d;
                }
                dependence[row * NEIGHBOURS + equal]++;
                if (count) distance[row] += fabs((double)around / count - own);
                for (unsigned begins = on & ~back; begins; begins &= begins - 1) {
                    const int d = __builtin_ctz(begins);
                    const int64_t step = steps[d];
                    int64_t length = 2;
                    for (const uint16_t *next = at + 2 * step; *next == own; next += step) length++;
                    runs[(row * DIRECTIONS + d) * longest + length - 1]++;
                }
                parent[place] = place;
                size[place] = 0;
                for (unsigned join = needed[back]; join; join &= join - 1) {
                    const int32_t a = root_of(parent, place);
                    const int32_t b = root_of(parent, place - (int32_t)steps[__builtin_ctz(join)]);
                    if (a < b) parent[b] = a; else parent[a] = b;
                }
            }
            for (int d = 0; d < DIRECTIONS; d++) paired[d * w->lesions + lesion] = met >> d & 1;
            for (int64_t v = begin; v < end; v++) size[root_of(parent, (int32_t)(w->local[v] - base))]++;
            for (int64_t v = begin; v < end; v++) {
                const int64_t place = w->local[v] - base;
                if (size[place]) {
                    zone_row[zones] = (int32_t)(row_0 + cells[place]);
                    zone_size[zones++] = size[place];
                }
            }
            lay(w, image, lesion, cells, 0);
        }
    free(cells);
    free(parent);
    free(size);
    return zones;
}

/* One pass of a filter of 6 taps along an axis whose step in memory is `step`: `count` blocks of `n` cells become blocks
   of n - 5 * step; out[i] = sum over j of taps[j] * image[i + (5 - j) * step], added in this order. */
#define FILTER(NAME, REAL)                                                                                             \
    void NAME(const REAL *image, int64_t count, int64_t n, int64_t step, const double *taps, REAL *out) {              \
        const REAL a = (REAL)taps[0], b = (REAL)taps[1], c = (REAL)taps[2];                                            \
        const REAL d = (REAL)taps[3], e = (REAL)taps[4], f = (REAL)taps[5];                                            \
        for (; count; count--, image += n, out += n - 5 * step)                                                        \
            for (int64_t i = 0; i < n - 5 * step; i++)                                                                 \
                out[i] = a * image[i + 5 * step] + b * image[i + 4 * step] + c * image[i + 3 * step] +                 \
                         d * image[i + 2 * step] + e * image[i + step] + f * image[i];                                 \
    }
FILTER(workbench_filter_float, float)
FILTER(workbench_filter_double, double)

/* The same symmetric filter along an axis whose step is `step`, zero outside: taps[0] in the middle, taps[reach] last;
   out[i] = taps[0] * in[i], then taps[k] * (in[i - k] + in[i + k]) added for k = 1 .. `count` blocks of n * step cells.
   Returns 0, or 1 without memory. */
int workbench_smooth(const float *restrict in, int64_t count, int64_t n, int64_t step, const float *taps, int64_t reach,
                     float *restrict out) {
    float *padded = calloc((n + 2 * reach) * step, sizeof *padded);
    if (!padded) return 1;
    for (; count; count--, in += n * step, out += n * step) {
        const float *restrict middle = padded + reach * step;
        memcpy(padded + reach * step, in, n * step * sizeof *in);
        const int64_t size = step == 1 ? n : step;
        for (int64_t i = 0; i < n * step; i += size) {
            for (int64_t c = i; c < i + size; c++) out[c] = taps[0] * middle[c];
            for (int64_t k = 1; k <= reach; k++)
                for (int64_t c = i; c < i + size; c++)
                    out[c] += taps[k] * (middle[c - k * step] + middle[c + k * step]);
        }
    }
    free(padded);
    return 0;
}

typedef struct {
    int32_t at[3]; /* half voxels along z, y, x */
} Point;

static int64_t turn(const Point *o, const Point *p, const Point *q, int a, int b) {
    return (int64_t)(p->at[a] - o->at[a]) * (q->at[b] - o->at[b]) - (int64_t)(p->at[b] - o->at[b]) * (q->at[a] - o->at[a]);
}

/* Corners of the convex hull of points in one plane, sorted along a, then b (Andrew 1979); `hull` has room for n + 1. */
static int64_t corners(const Point *points, int64_t n, int a, int b, Point *hull) {
    int64_t k = 0;
    if (n < 3) {
        memcpy(hull, points, n * sizeof *points);
        return n;
    }
    for (int64_t i = 0; i < n; i++) {
        while (k >= 2 && turn(&hull[k - 2], &hull[k - 1], &points[i], a, b) <= 0) k--;
        hull[k++] = points[i];
    }
    const int64_t upper = k + 1;
    for (int64_t i = n - 2; i >= 0; i--) {
        while (k >= upper && turn(&hull[k - 2], &hull[k - 1], &points[i], a, b) <= 0) k--;
        hull[k++] = points[i];
    }
    return k - 1;
}

/* Largest squared distance of two points, or `most` if that is larger. */
static double farthest(const Point *points, int64_t n, const double *half, double most) {
    for (int64_t i = 1; i < n; i++)
        for (int64_t j = 0; j < i; j++) {
            double sum = 0;
            for (int a = 0; a < 3; a++) {
                const double d = (points[i].at[a] - points[j].at[a]) * half[a];
                sum += d * d;
            }
            if (sum > most) most = sum;
        }
    return most;
}

/* Points sorted by coordinate along `axis`, less than `bins`; those of one coordinate stay in order. */
static void ordered(const Point *points, int64_t n, int axis, int64_t bins, int64_t *count, Point *out) {
    memset(count, 0, (bins + 1) * sizeof *count);
    for (int64_t i = 0; i < n; i++) count[points[i].at[axis] + 1]++;
    for (int64_t i = 0; i < bins; i++) count[i + 1] += count[i];
    for (int64_t i = 0; i < n; i++) out[count[points[i].at[axis]]++] = points[i];
}

/* Corners of the hull in each plane of points sorted by `axis`, then the other two; `kept` has room for n + 1. Raises
   `most`, if given, to the largest squared distance of two points in one plane. */
static int64_t in_planes(const Point *points, int64_t n, int axis, const double *half, Point *kept, double *most) {
    const int a = axis == 0, b = axis == 2 ? 1 : 2;
    int64_t k = 0;
    for (int64_t i = 0, j; i < n; i = j) {
        for (j = i + 1; j < n && points[j].at[axis] == points[i].at[axis]; j++) {}
        const int64_t here = corners(points + i, j - i, a, b, kept + k);
        if (most) *most = farthest(kept + k, here, half, *most);
        k += here;
    }
    return k;
}

/* Surface of `lesions` regions in boxes of shape[0 .. 2] cells, bytes 0 or 1, clear of the faces by a cell.

   Bit k of a cube's code is the cell corner[k] after its first; area[code] and terms[code][4] as shape.py has them;
   low[lesion][3] one less than the first voxel of the region; `half` the size of half a voxel in mm. out[lesion][6]: area,
   volume in voxels, and the largest squared distance of two vertices in one plane of z, of y, of x, and of any two: only
   corners of the hulls of planes can be that far apart. Returns 0, or 1 without memory. */
int workbench_surface(const uint8_t *region, int64_t lesions, const int64_t *shape, const int64_t *corner,
                      const double *area, const double *terms, const int64_t *low, const double *half, double *out) {
    const int64_t steps[3] = {shape[1] * shape[2], shape[2], 1}, box = shape[0] * steps[0];
    int64_t bins = 0, room = 0;
    for (int a = 0; a < 3; a++)
        if (2 * shape[a] > bins) bins = 2 * shape[a];
    int64_t *count = malloc((bins + 1) * sizeof *count);
    Point *p = NULL, *q = NULL, *r = NULL;
    int failed = !count;
    for (int64_t lesion = 0; !failed && lesion < lesions; lesion++, region += box, low += 3, out += 6) {
        int64_t n = 0;
        memset(out, 0, 6 * sizeof *out);
        for (int64_t i = 0; i < box - steps[0] - steps[1] - 1; i++)
            n += (region[i] ^ region[i + 1]) + (region[i] ^ region[i + steps[1]]) + (region[i] ^ region[i + steps[0]]);
        if (n + 1 > room) {
            room = n + n / 2 + 1;
            free(p), free(q), free(r);
            p = malloc(room * sizeof *p), q = malloc(room * sizeof *q), r = malloc(room * sizeof *r);
            if ((failed = !p || !q || !r)) break;
        }
        n = 0;
        for (int32_t z = 0; z < shape[0] - 1; z++)
            for (int32_t y = 0; y < shape[1] - 1; y++) {
                const uint8_t *row = region + z * steps[0] + y * steps[1];
                for (int32_t x = 0; x < shape[2] - 1; x++) {
                    int code = 0;
                    for (int k = 0; k < 8; k++) code |= row[x + corner[k]] << k;
                    if (code == 0 || code == 255) continue;
                    const double *t = terms + 4 * code;
                    out[0] += area[code];
                    out[1] += t[0] + t[1] * (z - low[0]) + t[2] * (y - low[1]) + t[3] * (x - low[2]);
                    for (int a = 0; a < 3; a++) /* a vertex in the middle of each edge between region and background */
                        if (row[x] ^ row[x + steps[a]])
                            p[n++] = (Point){{2 * z + (a == 0), 2 * y + (a == 1), 2 * x + (a == 2)}};
                }
            }
        ordered(p, n, 2, bins, count, q);
        ordered(q, n, 1, bins, count, p);
        ordered(p, n, 0, bins, count, q);
        for (int axis = 1; axis < 3; axis++) {
            ordered(q, n, axis, bins, count, p);
            in_planes(p, n, axis, half, r, &out[2 + axis]);
        }
        n = in_planes(q, n, 0, half, p, &out[2]);
        for (int axis = 1; axis < 3; axis++) { /* p holds what is left */
            ordered(p, n, 3 - axis, bins, count, q);
            ordered(q, n, 0, bins, count, p);
            ordered(p, n, axis, bins, count, q);
            n = in_planes(q, n, axis, half, p, NULL);
        }
        out[5] = farthest(p, n, half, 0);
    }
    free(p), free(q), free(r), free(count);
    return failed;
}
