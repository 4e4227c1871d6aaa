/* What the codec needs of CPython beyond its portable API: 128-bit integers without a detour, strong references out of
 * a dict, and the question whether anybody else holds an object. Each has a portable branch for interpreters to come. */
#ifndef TRACEFILL_CPYTHON_H
#define TRACEFILL_CPYTHON_H

#include <Python.h>
#include <stdint.h>
#include <string.h>

#include "_hex.h"

#ifdef Py_GIL_DISABLED
#define TF_FREE_THREADED 1
#define TF_PER_THREAD _Thread_local
#else
#define TF_FREE_THREADED 0
#define TF_PER_THREAD
#endif

#if PYLONG_BITS_IN_DIGIT == 30 && PY_VERSION_HEX < 0x030E0000
#define TF_OWN_DIGITS 1
#else
#define TF_OWN_DIGITS 0
#endif

#if TF_OWN_DIGITS
#if PY_VERSION_HEX >= 0x030C0000
#define TF_DIGITS(o) (((PyLongObject *)(o))->long_value.ob_digit)
#define TF_SIZE(o) ((Py_ssize_t)(((PyLongObject *)(o))->long_value.lv_tag >> 3))
#define TF_NEGATIVE(o) ((((PyLongObject *)(o))->long_value.lv_tag & 3) == 2)
#else
#define TF_DIGITS(o) (((PyLongObject *)(o))->ob_digit)
#define TF_SIZE(o) (Py_SIZE(o) < 0 ? -Py_SIZE(o) : Py_SIZE(o))
#define TF_NEGATIVE(o) (Py_SIZE(o) < 0)
#endif
#define TF_DIGIT 0x3fffffffu
#endif

/* high * 2**64 + low as an int. */
static inline PyObject *tf_int128(uint64_t high, uint64_t low) {
#if TF_OWN_DIGITS
    Py_ssize_t size;
    PyLongObject *number;
    if (!high) return PyLong_FromUnsignedLongLong(low);
    size = high >> 56 ? 5 : high >> 26 ? 4 : 3;
    number = _PyLong_New(size);
    if (number == NULL) return NULL;
    TF_DIGITS(number)[0] = (digit)(low & TF_DIGIT);
    TF_DIGITS(number)[1] = (digit)(low >> 30 & TF_DIGIT);
    TF_DIGITS(number)[2] = (digit)((low >> 60 | high << 4) & TF_DIGIT);
    if (size > 3) TF_DIGITS(number)[3] = (digit)(high >> 26 & TF_DIGIT);
    if (size > 4) TF_DIGITS(number)[4] = (digit)(high >> 56);
    return (PyObject *)number;
#elif PY_VERSION_HEX >= 0x030D0000
    uint64_t words[2];
#if PY_LITTLE_ENDIAN
    words[0] = low, words[1] = high;
#else
    words[0] = high, words[1] = low;
#endif
    return PyLong_FromUnsignedNativeBytes(words, 16, Py_ASNATIVEBYTES_NATIVE_ENDIAN);
#else
    unsigned char bytes[16];
    int i;
    for (i = 0; i < 8; i++) bytes[i] = (unsigned char)(high >> (56 - 8 * i)), bytes[8 + i] = (unsigned char)(low >> (56 - 8 * i));
    return _PyLong_FromByteArray(bytes, 16, 0, 0);
#endif
}

/* 1 when the object is an int of 0 .. 2**128-1, which is then in *high and *low; else 0, without an exception. */
static inline int tf_read128(PyObject *number, uint64_t *high, uint64_t *low) {
    if (!PyLong_Check(number)) return 0;
#if TF_OWN_DIGITS
    {
        const Py_ssize_t size = TF_SIZE(number);
        const digit *d = TF_DIGITS(number);
        if (TF_NEGATIVE(number) || size > 5 || (size == 5 && d[4] >> 8)) return 0;
        *low = size > 0 ? d[0] : 0;
        if (size > 1) *low |= (uint64_t)d[1] << 30;
        *high = 0;
        if (size > 2) *low |= (uint64_t)d[2] << 60, *high = d[2] >> 4;
        if (size > 3) *high |= (uint64_t)d[3] << 26;
        if (size > 4) *high |= (uint64_t)d[4] << 56;
        return 1;
    }
#elif PY_VERSION_HEX >= 0x030D0000
    {
        uint64_t words[3] = {0, 0, 0};
        const Py_ssize_t used = PyLong_AsNativeBytes(number, words, 24, Py_ASNATIVEBYTES_LITTLE_ENDIAN);
        if (used < 0) { PyErr_Clear(); return 0; }
        if (used > 24 || words[2]) return 0;
        *low = TF_LITTLE64(words[0]);
        *high = TF_LITTLE64(words[1]);
        return 1;
    }
#else
    {
        unsigned char bytes[16];
        int i;
        if (_PyLong_AsByteArray((PyLongObject *)number, bytes, 16, 0, 0) < 0) { PyErr_Clear(); return 0; }
        *high = *low = 0;
        for (i = 0; i < 8; i++) *high = *high << 8 | bytes[i], *low = *low << 8 | bytes[8 + i];
        return 1;
    }
#endif
}

/* A strong reference to dict[key], or NULL when it is not there. Never leaves an exception (keys are our own strings). */
static inline PyObject *tf_dict_get(PyObject *dict, PyObject *key) {
    PyObject *value;
#if PY_VERSION_HEX >= 0x030D0000
    if (PyDict_GetItemRef(dict, key, &value) < 0) { PyErr_Clear(); return NULL; }
#else
    value = PyDict_GetItemWithError(dict, key);
    if (value == NULL) { if (PyErr_Occurred()) PyErr_Clear(); return NULL; }
    Py_INCREF(value);
#endif
    return value;
}

/* An attribute of instances of one class, by its place among their values. CPython looks a name up in all base classes before it
 * looks into the instance: four fifths of what it costs. The place is that of the name in the keys that all instances of the
 * class share; it never changes. An instance whose __dict__ somebody has asked for has no such values any more. */
#if PY_VERSION_HEX >= 0x030B0000 && PY_VERSION_HEX < 0x030C0000    /* later ones keep their values elsewhere, each another way */
#define Py_BUILD_CORE 1
#include "internal/pycore_dict.h"
#undef Py_BUILD_CORE

static Py_ssize_t tf_place_of(PyTypeObject *type, const char *name) {
    struct _dictkeysobject *keys;
    if (!(type->tp_flags & Py_TPFLAGS_HEAPTYPE) || !(type->tp_flags & Py_TPFLAGS_MANAGED_DICT)) return -1;
    keys = ((PyHeapTypeObject *)type)->ht_cached_keys;
    if (keys == NULL || keys->dk_kind == DICT_KEYS_GENERAL) return -1;
    for (Py_ssize_t i = 0; i < keys->dk_nentries; i++) {
        PyObject *key = DK_UNICODE_ENTRIES(keys)[i].me_key;
        if (key != NULL && PyUnicode_CompareWithASCIIString(key, name) == 0) return i;
    }
    return -1;
}
/* Borrowed; NULL when it is to be looked up after all. */
static inline PyObject *tf_value_at(PyObject *object, Py_ssize_t place) {
    PyDictValues *values;
    if (place < 0) return NULL;
    values = ((PyDictValues **)object)[-4];
    return values != NULL ? values->values[place] : NULL;
}
#else
static Py_ssize_t tf_place_of(PyTypeObject *type, const char *name) { (void)type; (void)name; return -1; }
static inline PyObject *tf_value_at(PyObject *object, Py_ssize_t place) { (void)object; (void)place; return NULL; }
#endif

/* True when nobody but the `known` references of ours holds the object, not even weakly. On free-threaded builds the
 * count of another thread cannot be read, so the answer is always no. */
static inline int tf_only_ours(PyObject *object, Py_ssize_t known) {
#if TF_FREE_THREADED
    (void)object, (void)known;
    return 0;
#else
    const Py_ssize_t weak = Py_TYPE(object)->tp_weaklistoffset;
    return Py_REFCNT(object) == known && (weak == 0 || *(PyObject **)((char *)object + weak) == NULL);
#endif
}

/* Borrowed looks into a list or tuple, and at ASCII text (NULL when it is something else). */
static inline Py_ssize_t tf_size(PyObject *items) {
    return PyTuple_Check(items) || PyList_Check(items) ? Py_SIZE(items) : -1;
}

static inline PyObject **tf_items(PyObject *items) {
    return PyTuple_Check(items) ? ((PyTupleObject *)items)->ob_item : ((PyListObject *)items)->ob_item;
}

/* The first two of a tuple or list. */
static inline int tf_pair(PyObject *pair, PyObject **name, PyObject **value) {
    PyObject **items;
    if (PyTuple_Check(pair)) items = ((PyTupleObject *)pair)->ob_item;
    else if (PyList_Check(pair)) items = ((PyListObject *)pair)->ob_item;
    else return 0;
    if (Py_SIZE(pair) < 2) return 0;
    *name = items[0];
    *value = items[1];
    return 1;
}

static inline const char *tf_ascii(PyObject *text, Py_ssize_t *length) {
    if (PyBytes_Check(text)) {
        *length = PyBytes_GET_SIZE(text);
        return PyBytes_AS_STRING(text);
    }
    if (PyUnicode_Check(text) && PyUnicode_IS_ASCII(text)) {
        *length = PyUnicode_GET_LENGTH(text);
        return (const char *)PyUnicode_DATA(text);
    }
    return NULL;
}

/* The length of a header's name where it is ASCII text shorter than 32 characters, else 0. */
static inline unsigned tf_name_length(PyObject *name) {
    Py_ssize_t length = 0;
    if (PyBytes_Check(name)) length = PyBytes_GET_SIZE(name);
    else if (PyUnicode_Check(name) && PyUnicode_IS_ASCII(name)) length = PyUnicode_GET_LENGTH(name);
    return length < 32 ? (unsigned)length : 0;
}

static inline int tf_lowest_bit(unsigned bits) {
#if defined(__GNUC__)
    return __builtin_ctz(bits);
#else
    int i = 0;
    while (!(bits & 1)) bits >>= 1, i++;
    return i;
#endif
}

/* type() of no arguments, by way of the type's own slots: a tenth of what a call from the interpreter costs. */
static inline PyObject *tf_new(PyObject *type, PyObject *no_arguments) {
    return ((PyTypeObject *)type)->tp_new((PyTypeObject *)type, no_arguments, NULL);
}

/* object.__new__: past the `__new__` of a class that has one. */
static inline PyObject *tf_new_object(PyTypeObject *type) {
    PyObject *none = PyTuple_New(0);
    PyObject *made = none != NULL ? PyBaseObject_Type.tp_new(type, none, NULL) : NULL;
    Py_XDECREF(none);
    return made;
}

/* type.__setattr__ (or __delattr__, with NULL) without its refusal for classes that are marked immutable. Such a class differs
 * from others in nothing else: its methods are looked up in the same way, and the look-up's caches are told. */
static inline int tf_set_type_attribute(PyObject *owner, PyObject *name, PyObject *value) {
    PyTypeObject *type = (PyTypeObject *)owner;
    const unsigned long immutable = type->tp_flags & Py_TPFLAGS_IMMUTABLETYPE;
    int failed;
    type->tp_flags &= ~immutable;
    failed = PyType_Type.tp_setattro(owner, name, value);
    type->tp_flags |= immutable;
    return failed;
}

/* The memory of Snapshots that nobody refers to any more, kept for the next ones: a list through the blocks themselves.
 * The GIL guards it. Free-threaded builds have no use for it: there the allocator (mimalloc) keeps such lists per thread,
 * and a list of our own would need a lock on every hand-off. */
static void *tf_kept = NULL;
static Py_ssize_t tf_kept_number = 0, tf_kept_most = 0;

static inline Py_ssize_t tf_kept_count(void) { return tf_kept_number; }
static inline void tf_kept_grow(Py_ssize_t more) { tf_kept_most += more; }

static PyObject *tf_kept_alloc(PyTypeObject *type, Py_ssize_t items) {
    PyObject *block = (PyObject *)tf_kept;
    if (TF_FREE_THREADED || block == NULL) return PyType_GenericAlloc(type, items);
    tf_kept = *(void **)block;
    tf_kept_number--;
    memset((void *)block, 0, (size_t)type->tp_basicsize);
    return PyObject_Init(block, type);
}

static void tf_kept_free(void *block) {
    if (TF_FREE_THREADED || tf_kept_number >= tf_kept_most) {
        PyObject_Free(block);
        return;
    }
    *(void **)block = tf_kept;
    tf_kept = block;
    tf_kept_number++;
}

#if TF_FREE_THREADED
typedef PyMutex tf_mutex;
#define tf_lock(mutex) PyMutex_Lock(mutex)
#define tf_unlock(mutex) PyMutex_Unlock(mutex)
#else
typedef char tf_mutex;
#define tf_lock(mutex) ((void)(mutex))
#define tf_unlock(mutex) ((void)(mutex))
#endif

#endif
