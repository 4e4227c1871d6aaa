/* Which generator is running, read out of CPython's frames: its portable API makes an object of every frame that it shows,
 * which would cost more than all the rest of an attach(). That API is the last branch, for interpreters to come.
 *
 * A frame is borrowed here, or (last branch) held until tf_let_go(). The functions below run with the GIL (or with the
 * thread's own state on free-threaded builds) and look at the frames of their own thread only. None leaves an exception. */
#ifndef TRACEFILL_FRAMES_H
#define TRACEFILL_FRAMES_H

#include <Python.h>
#include <frameobject.h>

#if PY_VERSION_HEX < 0x030B0000

typedef PyFrameObject tf_frame;

static inline tf_frame *tf_innermost(void) { return PyThreadState_Get()->frame; }
static inline tf_frame *tf_caller(tf_frame *frame) { return frame->f_back; }
static inline void tf_let_go(tf_frame *frame) { (void)frame; }
static inline PyCodeObject *tf_code(tf_frame *frame) { return frame->f_code; }
static inline PyObject *tf_object_of(tf_frame *frame) { return Py_NewRef((PyObject *)frame); }
static inline PyObject *tf_generators_object(tf_frame *frame) { return frame->f_gen != NULL ? (PyObject *)frame : NULL; }
static inline int tf_is_alive(PyObject *object) { return ((PyFrameObject *)object)->f_gen != NULL; }
static inline int tf_is_running(PyObject *object) { return ((PyFrameObject *)object)->f_state == FRAME_EXECUTING; }

#elif PY_VERSION_HEX < 0x030E0000

#define Py_BUILD_CORE 1
#include "internal/pycore_frame.h"
#undef Py_BUILD_CORE

typedef struct _PyInterpreterFrame tf_frame;

/* The frame, or the first one below it that runs Python code. */
static inline tf_frame *tf_python(tf_frame *frame) {
#if PY_VERSION_HEX >= 0x030C0000
    while (frame != NULL && frame->owner == FRAME_OWNED_BY_CSTACK) frame = frame->previous;
#endif
    return frame;
}
static inline tf_frame *tf_innermost(void) {
#if PY_VERSION_HEX >= 0x030D0000
    return tf_python(PyThreadState_Get()->current_frame);
#else
    return tf_python(PyThreadState_Get()->cframe->current_frame);
#endif
}
static inline tf_frame *tf_caller(tf_frame *frame) { return tf_python(frame->previous); }
static inline void tf_let_go(tf_frame *frame) { (void)frame; }
static inline PyCodeObject *tf_code(tf_frame *frame) {
#if PY_VERSION_HEX >= 0x030D0000
    return (PyCodeObject *)frame->f_executable;
#else
    return frame->f_code;
#endif
}
/* The frame's object, which this makes of it and of those above it. */
static PyObject *tf_object_of(tf_frame *frame) {
    PyFrameObject *object = PyThreadState_GetFrame(PyThreadState_Get());
    while (object != NULL && object->f_frame != frame) {
        PyFrameObject *back = PyFrame_GetBack(object);
        Py_DECREF(object);
        object = back;
    }
    return (PyObject *)object;
}
/* The same, borrowed, if it is there already and belongs to a generator; else NULL. */
static inline PyObject *tf_generators_object(tf_frame *frame) {
    return frame->owner == FRAME_OWNED_BY_GENERATOR ? (PyObject *)frame->frame_obj : NULL;
}
static inline int tf_is_alive(PyObject *object) {
    return ((PyFrameObject *)object)->f_frame->owner == FRAME_OWNED_BY_GENERATOR;
}
static inline int tf_is_running(PyObject *object) {
    tf_frame *frame = ((PyFrameObject *)object)->f_frame;
    if (frame->owner != FRAME_OWNED_BY_GENERATOR) return 0;
    return ((PyGenObject *)((char *)frame - offsetof(PyGenObject, gi_iframe)))->gi_frame_state == FRAME_EXECUTING;
}

#else

typedef PyFrameObject tf_frame;

static inline tf_frame *tf_innermost(void) { return PyThreadState_GetFrame(PyThreadState_Get()); }
static inline tf_frame *tf_caller(tf_frame *frame) { return PyFrame_GetBack(frame); }
static inline void tf_let_go(tf_frame *frame) { Py_XDECREF((PyObject *)frame); }
static inline PyCodeObject *tf_code(tf_frame *frame) {
    PyCodeObject *code = PyFrame_GetCode(frame);
    Py_DECREF((PyObject *)code);    /* the frame keeps it */
    return code;
}
static inline PyObject *tf_object_of(tf_frame *frame) { return Py_NewRef((PyObject *)frame); }
static inline PyObject *tf_generators_object(tf_frame *frame) { return (PyObject *)frame; }
static inline int tf_is_alive(PyObject *object) {
    PyObject *generator = PyFrame_GetGenerator((PyFrameObject *)object);
    Py_XDECREF(generator);
    return generator != NULL;
}
static int tf_is_running(PyObject *object) {
    PyObject *generator = PyFrame_GetGenerator((PyFrameObject *)object), *running;
    if (generator == NULL) return 0;
    running = PyObject_GetAttrString(generator, PyGen_CheckExact(generator) ? "gi_running" : "ag_running");
    Py_DECREF(generator);
    Py_XDECREF(running);
    PyErr_Clear();
    return running == Py_True;
}

#endif

/* What stands between an attach() and the code that asked for it: the files of contextlib and of OpenTelemetry's context,
 * and every __enter__. All are borrowed from objects that live as long as the process. */
static PyObject *tf_contextlib_file = NULL, *tf_context_file = NULL, *tf_enter = NULL, *tf_async_enter = NULL;

static inline int tf_enters(PyCodeObject *code) { return code->co_name == tf_enter || code->co_name == tf_async_enter; }
static inline int tf_is_between(PyCodeObject *code) {
    return tf_enters(code) || code->co_filename == tf_contextlib_file || code->co_filename == tf_context_file;
}

/* A new reference to the frame of the generator that asks for an attach(), or NULL when no generator does. One that is
 * driven by an __enter__ (contextlib's) is no such generator: what it attaches is meant for whoever enters it. */
static PyObject *tf_asking_generator(void) {
    tf_frame *frame = tf_innermost();
    PyObject *found = NULL;
    while (frame != NULL) {
        PyCodeObject *code = tf_code(frame);
        tf_frame *caller = tf_caller(frame);
        if (code->co_flags & (CO_GENERATOR | CO_ASYNC_GENERATOR)) {
            if (caller == NULL || !tf_enters(tf_code(caller))) {
                found = tf_object_of(frame);
                tf_let_go(caller);
                break;
            }
        } else if (!tf_is_between(code)) {
            tf_let_go(caller);
            break;
        }
        tf_let_go(frame);
        frame = caller;
    }
    tf_let_go(frame);
    return found;
}

/* The innermost running generator whose frame is a key of this dict: a new reference to the frame, or NULL. */
static PyObject *tf_running_one_of(PyObject *frames) {
    tf_frame *frame = tf_innermost(), *caller;
    PyObject *found = NULL;
    while (frame != NULL && found == NULL) {
        PyObject *object = tf_generators_object(frame);
        if (object != NULL && PyDict_Contains(frames, object) == 1) found = Py_NewRef(object);
        caller = tf_caller(frame);
        tf_let_go(frame);
        frame = caller;
    }
    tf_let_go(frame);
    return found;
}

/* 1 when this weak reference is to the contextvars.Context that is entered now. */
static inline int tf_is_home(PyObject *home) {
    return ((PyWeakReference *)home)->wr_object == PyThreadState_Get()->context;
}
static inline PyObject *tf_new_home(void) {
    PyObject *here = PyThreadState_Get()->context;
    return here != NULL ? PyWeakref_NewRef(here, NULL) : Py_NewRef(Py_None);    /* nobody has set a variable here yet */
}

#endif
