/* Lower-case hex <-> numbers: SSE2 where the machine has it (every x86-64), SWAR elsewhere. Both are compiled in and tested;
 * the names without a suffix are the ones the codec uses. A reader says 0 as soon as one character is not [0-9a-f]. */
#ifndef TRACEFILL_HEX_H
#define TRACEFILL_HEX_H

#include <stdint.h>
#include <string.h>

#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#define TF_SSE2 1
#else
#define TF_SSE2 0
#endif

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define TF_LITTLE64(x) __builtin_bswap64(x)
#define TF_BIG64(x) (x)
#elif defined(_MSC_VER)
#include <stdlib.h>
#define TF_LITTLE64(x) (x)
#define TF_BIG64(x) _byteswap_uint64(x)
#else
#define TF_LITTLE64(x) (x)
#define TF_BIG64(x) __builtin_bswap64(x)
#endif

#define TF_EACH(byte) (0x0101010101010101ULL * (byte))

static inline uint64_t tf_load64(const char *text) {
    uint64_t word;
    memcpy(&word, text, 8);
    return TF_LITTLE64(word);
}

/* 8 digits -> 32 bits. The sums set the top bit of each byte that is >= a bound; no sum of two 7-bit values carries over. */
static inline int tf_read8_swar(const char *text, uint32_t *value) {
    uint64_t word = tf_load64(text), digit, letter;
    if (word & TF_EACH(0x80)) return 0;
    digit = (word + TF_EACH(0x80 - '0')) & ~(word + TF_EACH(0x80 - ('9' + 1)));
    letter = (word + TF_EACH(0x80 - 'a')) & ~(word + TF_EACH(0x80 - ('f' + 1)));
    if (((digit | letter) & TF_EACH(0x80)) != TF_EACH(0x80)) return 0;
    word = (word & TF_EACH(0x0f)) + 9 * ((word >> 6) & TF_EACH(0x01));
    word = ((word << 4) | (word >> 8)) & 0x00ff00ff00ff00ffULL;
    word = (word | (word >> 8)) & 0x0000ffff0000ffffULL;
    word = word | (word >> 16);
    *value = (uint32_t)((word & 0xff) << 24 | (word & 0xff00) << 8 | (word >> 8 & 0xff00) | (word >> 24 & 0xff));
    return 1;
}

static inline int tf_read16_swar(const char *text, uint64_t *value) {
    uint32_t high, low;
    if (!tf_read8_swar(text, &high) || !tf_read8_swar(text + 8, &low)) return 0;
    *value = (uint64_t)high << 32 | low;
    return 1;
}

static inline void tf_write8_swar(uint32_t value, char *text) {
    uint64_t word = (uint64_t)(value >> 24 | (value >> 8 & 0xff00) | (value & 0xff00) << 8 | (value & 0xff) << 24);
    word = (word | word << 16) & 0x0000ffff0000ffffULL;
    word = (word | word << 8) & 0x00ff00ff00ff00ffULL;
    word = (word >> 4 & 0x000f000f000f000fULL) | (word & 0x000f000f000f000fULL) << 8;
    word += TF_EACH('0') + ((word + TF_EACH(6)) >> 4 & TF_EACH(1)) * ('a' - '9' - 1);
    word = TF_LITTLE64(word);
    memcpy(text, &word, 8);
}

static inline void tf_write16_swar(uint64_t value, char *text) {
    tf_write8_swar((uint32_t)(value >> 32), text);
    tf_write8_swar((uint32_t)value, text + 8);
}

#if TF_SSE2
static inline int tf_read16_sse2(const char *text, uint64_t *value) {
    const __m128i raw = _mm_loadu_si128((const __m128i *)text);
    /* Signed comparisons: a byte above 0x7f is negative, hence below '0' and never hex. */
    const __m128i digit = _mm_and_si128(_mm_cmpgt_epi8(raw, _mm_set1_epi8('0' - 1)), _mm_cmplt_epi8(raw, _mm_set1_epi8('9' + 1)));
    const __m128i letter = _mm_and_si128(_mm_cmpgt_epi8(raw, _mm_set1_epi8('a' - 1)), _mm_cmplt_epi8(raw, _mm_set1_epi8('f' + 1)));
    __m128i nibbles;
    uint64_t packed;
    if (_mm_movemask_epi8(_mm_or_si128(digit, letter)) != 0xffff) return 0;
    nibbles = _mm_add_epi8(_mm_and_si128(raw, _mm_set1_epi8(0x0f)), _mm_and_si128(letter, _mm_set1_epi8(9)));
    nibbles = _mm_or_si128(_mm_slli_epi16(nibbles, 4), _mm_srli_epi16(nibbles, 8));
    nibbles = _mm_packus_epi16(_mm_and_si128(nibbles, _mm_set1_epi16(0x00ff)), _mm_setzero_si128());
    _mm_storel_epi64((__m128i *)&packed, nibbles);
    *value = TF_BIG64(packed);
    return 1;
}

static inline void tf_write16_sse2(uint64_t value, char *text) {
    const uint64_t big = TF_BIG64(value);
    const __m128i bytes = _mm_loadl_epi64((const __m128i *)&big);
    const __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(0x0f));
    const __m128i low = _mm_and_si128(bytes, _mm_set1_epi8(0x0f));
    const __m128i nibbles = _mm_unpacklo_epi8(high, low);
    const __m128i letter = _mm_and_si128(_mm_cmpgt_epi8(nibbles, _mm_set1_epi8(9)), _mm_set1_epi8('a' - '9' - 1));
    _mm_storeu_si128((__m128i *)text, _mm_add_epi8(_mm_add_epi8(nibbles, _mm_set1_epi8('0')), letter));
}
#define tf_read16 tf_read16_sse2
#define tf_write16 tf_write16_sse2
#else
#define tf_read16_sse2 tf_read16_swar
#define tf_write16_sse2 tf_write16_swar
#define tf_read16 tf_read16_swar
#define tf_write16 tf_write16_swar
#endif

static inline int tf_read1(char digit) {
    if (digit >= '0' && digit <= '9') return digit - '0';
    if (digit >= 'a' && digit <= 'f') return digit - 'a' + 10;
    return -1;
}

/* 2 digits -> 0..255, or -1. */
static inline int tf_read2(const char *text) {
    const int high = tf_read1(text[0]), low = tf_read1(text[1]);
    return (high | low) < 0 ? -1 : high << 4 | low;
}

static inline void tf_write2(unsigned value, char *text) {
    static const char digits[] = "0123456789abcdef";
    text[0] = digits[value >> 4 & 15];
    text[1] = digits[value & 15];
}

#endif
