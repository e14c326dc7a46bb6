/* Plain loops over [C, H, W] arrays. */
#include <math.h>
#include <stdint.h>

typedef struct { int c, h, w, o, oh, ow, kh, kw, sh, sw, ph, pw, dh, dw, g; } Conv;

#define EACH_TAP(BODY) \
    for (int o = 0; o < s.o; o++) for (int i = 0; i < s.oh; i++) for (int j = 0; j < s.ow; j++) { \
        int in = s.c / s.g, first = o / (s.o / s.g) * in; \
        for (int c = 0; c < in; c++) for (int k = 0; k < s.kh; k++) for (int l = 0; l < s.kw; l++) { \
            int y_ = i * s.sh - s.ph + k * s.dh, x_ = j * s.sw - s.pw + l * s.dw; \
            if (y_ < 0 || y_ >= s.h || x_ < 0 || x_ >= s.w) continue; \
            int at = ((first + c) * s.h + y_) * s.w + x_, tap = ((o * in + c) * s.kh + k) * s.kw + l; \
            sum += BODY; } \

static void conv_f32(const float *x, const float *w, const float *b, float *y, Conv s) {
    float sum = 0;
    EACH_TAP(x[at] * w[tap])
        y[(o * s.oh + i) * s.ow + j] = sum + b[o]; sum = 0; }
}

static void conv_i8(const int8_t *x, float scale, const int8_t *w, const float *scales, const float *b,
                    float *y, Conv s) {
    int32_t sum = 0;
    EACH_TAP((int32_t)x[at] * w[tap])
        y[(o * s.oh + i) * s.ow + j] = (float)sum * (scale * scales[o]) + b[o]; sum = 0; }
}

static void quantize(const float *x, int8_t *q, int n, float scale) {
    for (int i = 0; i < n; i++) {
        float v = rintf(x[i] / scale);
        q[i] = (int8_t)(v < -128 ? -128 : v > 127 ? 127 : v);
    }
}
static void dequantize(const int8_t *q, float *x, int n, float scale) {
    for (int i = 0; i < n; i++) x[i] = q[i] * scale;
}
static void relu(const float *x, float *y, int n) {
    for (int i = 0; i < n; i++) y[i] = x[i] > 0 ? x[i] : 0;
}
static void add(const float *a, const float *b, float *y, int n) {
    for (int i = 0; i < n; i++) y[i] = a[i] + b[i];
}
static void subtract_channels(const float *x, const float *c, float *y, int channels, int size) {
    for (int i = 0; i < channels * size; i++) y[i] = x[i] - c[i / size];
}
static void average(const float *x, float *y, int channels, int size) {
    for (int c = 0; c < channels; c++) {
        float sum = 0;
        for (int i = 0; i < size; i++) sum += x[c * size + i];
        y[c] = sum / size;
    }
}
static void copy(const float *x, float *y, int n) {
    for (int i = 0; i < n; i++) y[i] = x[i];
}
static void pixels(const uint8_t *image, float *x, int channels, int size) {
    for (int i = 0; i < size; i++) for (int c = 0; c < channels; c++) x[c * size + i] = image[i * channels + c];
}
